"""Who pays, and who has had the most of the server lately.

Each tenant has an account of engine seconds and of KV, as shares of a server's, that fades; what
counts is the larger of the two (dominant resource fairness: Ghodsi et al., NSDI 2011), over the
tenant's share. Where promises cannot all be kept, those of the tenants who have had the most are
given up first. (The virtual token counter of Sheng et al., OSDI 2024, orders requests by such an
account. Differs: due times order them; the account says who gives way.)
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headway.errors import InvariantError
from headway.latency.model import LatencyModel, StepShape
from headway.request import Request

LATELY_S = 30.0
"""Seconds in which past use fades to about a third (experiments/tenants). Larger: a flood of
minutes ago counts against a tenant; smaller: a pause of seconds makes a flooder as good as new."""

AS_MUCH = 1.5
"""Factor by which a tenant may have used more than another before it gives way
(experiments/tenants). Larger: a flooder takes more than its share; smaller: chance decides who
gives way."""

NOTHING_S = 1e-3
"""Faded engine seconds below which an account ends (no run: a thousandth of a second decides
nothing). Larger: an account ends early; smaller: idle tenants take memory for longer."""

FAR_MORE = 3.0
"""Factor by which a tenant must have used more before its running streams lose KV to another's
claims (experiments/tenants). Larger: a flood's streams hold KV for longer; smaller: streams of
tenants who are alike drive each other out, and their prompts are computed again."""

SWEPT = 64
"""Number of accounts from which ended ones are removed, at each doubling (no run: it decides
nothing). Larger: more memory; smaller: new tenants cause a search more often."""


@dataclass(slots=True)
class TenantUse:
    """What somebody used lately. Seconds of the engine, and of the whole KV cache, faded.

    Attributes:
        share: What may be used, relative to the others.
        num_live: Its unfinished requests, ``num_decodes`` of them running.
        held_tokens: What those hold.
    """

    share: float = 1.0
    at_s: float = 0.0
    engine_s: float = 0.0
    kv_s: float = 0.0
    num_live: int = 0
    num_decodes: int = 0
    held_tokens: int = 0

    def fade(self, at_s: float) -> None:
        """Let the time until *at_s* pass."""
        if at_s > self.at_s:
            kept = math.exp((self.at_s - at_s) / LATELY_S)
            self.engine_s *= kept
            self.kv_s *= kept
            self.at_s = at_s

    def used(self, at_s: float) -> float:
        """Return the larger of both uses, over the share."""
        self.fade(at_s)
        return max(self.engine_s, self.kv_s) / self.share


class Tenants:
    """The accounts. Instants are the driver's, in seconds.

    Attributes:
        capacity_tokens: Tokens the whole KV cache holds; ``inf`` before it is known.
        heavy: Who gives way, as of the last plan.
    """

    def __init__(self) -> None:
        self.capacity_tokens = math.inf
        self.heavy: frozenset[str] = frozenset()
        self._accounts: dict[str, TenantUse] = {}
        self._live: dict[str, TenantUse] = {}
        """Those of them with unfinished requests."""
        self._decoding: dict[str, int] = {}
        """Of each decode, its tokens when it began less the steps until then."""
        self._busy: dict[str, TenantUse] = {}
        """The accounts with decodes."""
        self._in_flight: deque[list[tuple[TenantUse, float, int]]] = deque()
        """Of each step: whose it is, by what share of its time and with how many tokens of KV."""
        self._used: dict[str, float] = {}
        """What each tenant with unfinished requests had used, as of the last plan."""
        self._sweep_at = SWEPT

    @property
    def is_shared(self) -> bool:
        """Whether anybody could use what another lacks; if not, nothing is charged."""
        return len(self._accounts) > 1

    def arrived(self, request: Request, at_s: float) -> None:
        """A request came."""
        slo = request.slo
        account = self._accounts.get(slo.tenant)
        if account is None:
            self._sweep(at_s)
            # A newcomer has no claim to what it did not use before (Sheng et al. lift so, too). But
            # who is there alone may be a flood, and is to be the one who gives way.
            least = min(self._used.values(), default=0.0)
            least /= AS_MUCH if len(self._used) == 1 else 1.0
            account = TenantUse(at_s=at_s, engine_s=least * (slo.share or 1.0))
            self._accounts[slo.tenant] = account
        account.share = slo.share or account.share
        account.num_live += 1
        self._live[slo.tenant] = account

    def left(self, request: Request) -> None:
        """A request ended, whatever its outcome."""
        account = self._accounts[request.slo.tenant]
        account.num_live -= 1
        if not account.num_live:
            del self._live[request.slo.tenant]

    def decodes(self, request: Request, step: int) -> None:
        """A prompt is complete in a step."""
        began = self._decoding[request.request_id] = request.num_tokens - step
        account = self._busy[request.slo.tenant] = self._accounts[request.slo.tenant]
        account.num_decodes += 1
        account.held_tokens += began

    def stopped(self, request: Request) -> None:
        """A running request was preempted, or ended."""
        began = self._decoding.pop(request.request_id, None)
        if began is None:
            return
        account = self._accounts[request.slo.tenant]
        account.num_decodes -= 1
        account.held_tokens -= began
        if not account.num_decodes:
            del self._busy[request.slo.tenant]

    def begun(
        self,
        step: int,
        latency: LatencyModel,
        decodes: StepShape,
        shape: StepShape,
        chunks: Sequence[tuple[Request, int]],
    ) -> None:
        """A step begins: note whose it is. Its number, its decodes, all of it, whose prompt tokens.

        Of its time prompts have what it takes longer for them, as predicted; the decodes, in
        equal parts, the rest.
        """
        parts: list[tuple[TenantUse, float, int]] = []
        if self.is_shared:
            step_s = max(latency.predict_s(shape), 1e-9)
            decode_share = min(latency.predict_s(decodes) / step_s, 1.0)
            num_decodes = max(len(self._decoding), 1)
            for account in self._busy.values():
                held = account.held_tokens + account.num_decodes * step
                parts.append((account, decode_share * account.num_decodes / num_decodes, held))
            token_share = (1.0 - decode_share) / max(shape.num_prefill_tokens, 1)
            for request, num_tokens in chunks:
                account = self._accounts[request.slo.tenant]
                parts.append((account, token_share * num_tokens, request.num_computed_tokens))
        self._in_flight.append(parts)

    def done(self, at_s: float, duration_s: float) -> None:
        """Charge the oldest step, which took so many seconds."""
        for account, share, held_tokens in self._in_flight.popleft():
            account.fade(at_s)
            account.engine_s += share * duration_s
            account.kv_s += duration_s * held_tokens / self.capacity_tokens

    def weigh(self, at_s: float, capacity_tokens: int) -> None:
        """Find who has had so much more than others that it gives way: :attr:`heavy`."""
        self.heavy, self.capacity_tokens = frozenset(), capacity_tokens
        used = {name: account.used(at_s) for name, account in self._live.items()}
        most = max(used.values(), default=0.0)
        heavy = [name for name, seconds in used.items() if seconds * AS_MUCH >= most]
        if len(heavy) < len(used):
            self.heavy = frozenset(heavy)
        self._used = used

    def yielding(self, tenant: str) -> frozenset[str]:
        """Return the tenants whose running streams give their KV to this one's claims."""
        mine = self._used.get(tenant, 0.0) if self.heavy and tenant not in self.heavy else math.inf
        return frozenset(n for n in self.heavy if self._used[n] >= FAR_MORE * mine)

    def used(self, tenant: str, at_s: float) -> float:
        """Return what a tenant has had lately, over its share; 0 for one without an account."""
        account = self._accounts.get(tenant)
        return account.used(at_s) if account else 0.0

    def _sweep(self, at_s: float) -> None:
        """Forget who has used nothing lately, now and then."""
        if len(self._accounts) < self._sweep_at:
            return
        self._accounts = {
            name: account
            for name, account in self._accounts.items()
            if account.num_live or account.used(at_s) * account.share > NOTHING_S
        }
        self.heavy &= self._accounts.keys()
        self._sweep_at = max(2 * len(self._accounts), SWEPT)

    def validate(self, requests: Mapping[str, Request]) -> None:
        """Compare the accounts with the live requests.

        Raises:
            InvariantError: A count is off.
        """
        live = Counter(request.slo.tenant for request in requests.values())
        booked = {name: a.num_live for name, a in self._accounts.items() if a.num_live}
        if live != booked or live.keys() != self._live.keys():
            raise InvariantError(f"requests of tenants {live} are booked {booked}")
        decodes = Counter(requests[name].slo.tenant for name in self._decoding)
        held = Counter[str]()
        for name, began in self._decoding.items():
            held[requests[name].slo.tenant] += began
        for name, account in self._accounts.items():
            if (account.num_decodes, account.held_tokens) != (decodes[name], held[name]):
                raise InvariantError(f"{account} of {name!r}: {decodes[name]}, {held[name]} run")
