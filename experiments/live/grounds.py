"""What is served live, and by whom: two workloads, and the settings of stock vLLM on trial."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headway.bench.calls import workload_of
from headway.bench.contenders import CHAT_FIRST, Contender, headway, stock
from headway.bench.speed import Speed
from headway.workloads.arrivals import Arrivals
from headway.workloads.length_distribution import LengthDistribution, lognormal
from headway.workloads.schema import WorkloadRequest
from headway.workloads.sessions import SessionKind, make

POISSON = Arrivals("poisson")

LOADS = {"moderate": 0.8, "overload": 1.2}
"""Shares of the engine's time that the requests take, by the speed measured before the first run.
Outputs count at their bounds, and batches larger than eight are faster, so 1.2 is an overload in
bursts rather than throughout."""

CHATS = SessionKind(
    heads=(250, 500),
    opening=lognormal(40.0, 0.8),
    growth=lognormal(40.0, 0.8),
    output=lognormal(60.0, 0.6),
    num_calls=LengthDistribution(((0.0, 2), (0.5, 4), (1.0, 8))),
    pause_s=5.0,
    longest_tokens=2_000,
    first_class="chat",
    slo_class="chat",
    source="The workload `turns`, in sizes for a small model on two cores and 5,120 tokens of KV.",
)


@dataclass(frozen=True, slots=True)
class Ground:
    """A workload, and the settings of stock vLLM that are tried on it.

    Attributes:
        requests: From number, rate and seed to the requests.
        stock: One of them is best for a load, as the runs of the sweep's seed show.
    """

    name: str
    requests: Callable[[int, float, int], Sequence[WorkloadRequest]]
    stock: tuple[Contender, ...]

    def contenders(self) -> dict[str, Contender]:
        """Return everybody by key, stock's defaults first and Headway last."""
        return {one.key: one for one in (stock(), *self.stock, headway())}

    def rate_rps(self, speed: Speed, load: float) -> float:
        """Return the requests a second that take *load* of the engine's time at *speed*."""
        sample = self.requests(200, 1.0, 0)
        seen: set[int | str] = set()
        work_s = 0.0
        for request in sample:
            cached = sum(hash_id in seen for hash_id in request.hash_ids) * request.hash_tokens
            seen.update(request.hash_ids)
            work_s += (request.num_prompt_tokens - cached) * speed.prompt_token_s
            work_s += request.num_output_tokens * speed.output_token_s
        return round(load * len(sample) / work_s, 2)


def _budget(num_tokens: int, by_class: bool) -> Contender:
    """Return stock vLLM with a step's most tokens, and with chats first or in order of arrival."""
    args = ["--max-num-batched-tokens", str(num_tokens)]
    if num_tokens < 128:
        args += ["--max-num-seqs", str(num_tokens)]  # vLLM wants no more than the tokens.
    if not by_class:
        key = f"stock-{num_tokens}"
        return Contender(key, f"stock vLLM, {num_tokens} tokens a step", "stock", tuple(args))
    args += ["--scheduling-policy", "priority"]
    title = f"stock vLLM, {num_tokens} tokens a step, priorities"
    return Contender(f"stock-{num_tokens}-priority", title, "stock", tuple(args), CHAT_FIRST)


def _demo(num_requests: int, rate_rps: float, seed: int) -> list[WorkloadRequest]:
    return workload_of("demo", num_requests, POISSON, rate_rps, seed)


def _chats(num_requests: int, rate_rps: float, seed: int) -> list[WorkloadRequest]:
    return make("chats", num_requests, rate_rps, seed, POISSON, CHATS)


GROUNDS = {
    ground.name: ground
    for ground in (
        Ground("demo", _demo, tuple(_budget(n, True) for n in (32, 64, 128))),
        Ground("chats", _chats, tuple(_budget(n, False) for n in (64, 128, 256))),
    )
}
