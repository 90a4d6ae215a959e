"""Proactive allocation: KV is found some steps before a running request runs out of it.

CacheOPT (arXiv 2503.13773 §3.3): an allocation is extended k steps before it ends, from free
blocks, else from the global reserve, else by preempting; nobody stalls at the moment of
exhaustion. The engine hands out blocks by itself, one when a token needs it, so an allocation is
what this policy treats as taken: blocks the running will need within the look-ahead are
not given to newcomers, and if there are too few of them victims leave now. In the ledger an
estimate about to be outgrown is extended at the same moment.

Differs: prompts in progress count as taken in full, since they were admitted as a whole.
"""

from __future__ import annotations

from dataclasses import dataclass

from headway.kit.ledger import KvLedger
from headway.kit.parts import Funder
from headway.papers.cacheopt.critical import MINIMUM_TOKENS, Critical, Reserve
from headway.policy.draft import Draft
from headway.policy.plan import Preempt
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor

WHY = "running requests need its KV"

MOST_SHARE = 0.125
"""Of the whole cache that the reserve may take: a larger one costs more than the wrong
predictions it pays for."""


@dataclass(slots=True)
class Needs:
    """Blocks the running will need within the look-ahead.

    Attributes:
        growth: Per decode that grows, how many.
        critical: Ids among them that may draw on the reserve.
        num_critical, num_others: Sums of the growth.
        num_prompts: What prompts in progress need to be complete.
    """

    growth: dict[str, int]
    critical: set[str]
    num_critical: int
    num_others: int
    num_prompts: int

    def num_short(self, num_free: int, num_reserve: int) -> int:
        """Return blocks missing: in all, or for those who may not touch the reserve."""
        left = num_free - self.num_prompts
        for_all = self.num_others + self.num_critical - left
        return max(for_all, self.num_others - max(left - num_reserve, 0))

    def strike(self, request_id: str, num_prompt_blocks: int) -> None:
        """Somebody leaves: its needs are none."""
        blocks = self.growth.pop(request_id, 0)
        if request_id in self.critical:
            self.num_critical -= blocks
        else:
            self.num_others -= blocks
        self.num_prompts -= num_prompt_blocks


class Proactive(Funder):
    """Sees to it that the running have the blocks of the next steps before newcomers do.

    Args:
        ledger: Tells who is about to outgrow its estimate.
        critical: Tells who may draw on the reserve.
        reserve: Is told what of it is left.
        reserve_blocks: Set aside for the critical (8 is what is known of CacheOPT's), less in a
            tiny cache.
        look_ahead_steps: Steps ahead that are paid for, the one being planned included; 1 is
            what every policy does.
    """

    def __init__(
        self,
        ledger: KvLedger,
        critical: Critical,
        reserve: Reserve,
        reserve_blocks: int = 8,
        look_ahead_steps: int = 2,
    ) -> None:
        self._ledger = ledger
        self._critical = critical
        self._reserve = reserve
        self._reserve_blocks = reserve_blocks
        self._ahead = look_ahead_steps
        self._minimum_tokens = max(MINIMUM_TOKENS, look_ahead_steps)

    def fund(self, draft: Draft, predictor: Predictor, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """See :class:`~headway.kit.parts.Funder`."""
        self._extend(draft, predictor)
        reserve = min(self._reserve_blocks, int(MOST_SHARE * draft.given.view.num_total_blocks))
        self._ledger.resize(draft.given.capacity_tokens, draft.given.layout.tokens(reserve))
        if not draft.given.live.num_running:
            draft.num_spare_blocks = draft.given.view.num_free_blocks
            return ()
        needs = self._needs(draft)
        free, victims = self._find(draft, needs, reserve, preemptor)
        left = free - needs.num_prompts - needs.num_others - needs.num_critical
        draft.num_spare_blocks = max(left - reserve, 0)
        self._reserve.num_blocks_left = max(left, 0) - draft.num_spare_blocks
        return victims

    def _extend(self, draft: Draft, predictor: Predictor) -> None:
        """Predict again, at least a block further, whoever is about to outgrow its estimate."""
        for request_id in self._ledger.overdue(draft.given.step + self._ahead):
            request = draft.given.live.requests[request_id]
            least = request.num_output_tokens + draft.given.view.block_size_tokens
            longer = max(predictor.predict(request), min(least, request.max_output_tokens))
            request.predicted_output_tokens = longer
            self._ledger.enter(request, draft.given.step)

    def _needs(self, draft: Draft) -> Needs:
        """Return what the running need, decodes by whether they are critical."""
        view, live = draft.given.view, draft.given.live
        size, in_flight = view.block_size_tokens, view.num_steps_in_flight - 1
        needs = Needs({}, set(), 0, 0, draft.given.prompt_blocks())
        for request_id, request in live.decoding.items():
            computed = request.num_tokens + in_flight
            room = -computed % size
            if room >= self._minimum_tokens:
                continue
            is_critical = self._critical.holds(draft, request)
            ahead = self._minimum_tokens if is_critical else self._ahead
            last = request.num_prompt_tokens + request.max_output_tokens - 1
            layout = draft.given.layout
            blocks = layout.kept_blocks(min(computed + ahead, max(last, computed + 1)))
            blocks -= layout.kept_blocks(computed)
            if blocks <= 0:
                continue
            needs.growth[request_id] = blocks
            if is_critical:
                needs.critical.add(request_id)
                needs.num_critical += blocks
            else:
                needs.num_others += blocks
        return needs

    def _find(
        self, draft: Draft, needs: Needs, reserve: int, preemptor: Preemptor
    ) -> tuple[int, tuple[Preempt, ...]]:
        """Return the free blocks once the victims, which are returned too, have left."""
        free = draft.given.view.num_free_blocks
        short = needs.num_short(free, reserve)
        if short <= 0:
            return free, ()
        victims: list[Preempt] = []
        for victim in preemptor.for_running(draft):
            if short <= 0 or draft.given.live.num_running - len(victims) <= 1:
                break
            if victim.request_id in draft.gone:
                continue
            free += draft.given.freed_blocks(victim)
            is_prompt = victim.request_id in draft.given.live.prefilling
            needs.strike(victim.request_id, draft.given.missing_blocks(victim) if is_prompt else 0)
            victims.append(draft.preempt(victim, WHY))
            short = needs.num_short(free, reserve)
        return free, tuple(victims)
