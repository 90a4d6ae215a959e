"""Small loads that are short of KV, and what ``vllm_v0`` does with them step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.sim.steered_engine import Launch
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.model import StepShape
from headway.policy.plan import StepPlan

NO_TIME = 1e15
"""GiB/s of a link whose copies take no time worth mentioning."""


class Step(NamedTuple):
    """When it began, who computed how many tokens in it, and whom it preempted, in that order."""

    at_s: float
    tokens: dict[str, int]
    preempted: list[str]


@dataclass(frozen=True)
class Load:
    """An engine and its calls: name, arrival in seconds, tokens of prompt and output.

    Nobody in it outgrows what that release serves: prompt and output leave the watermark free, and
    fit a step when they are computed again.
    """

    num_blocks: int
    block_size: int
    max_num_batched_tokens: int
    max_num_seqs: int
    preemption_mode: str
    calls: tuple[tuple[str, float, int, int], ...]

    @property
    def fields(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)

    def step_s(self, num_tokens: int) -> float:
        """Return the seconds of a step. Who comes back from the host computes more tokens here."""
        return 0.25 if self.preemption_mode == "swap" else 0.01 + 0.001 * num_tokens


def drawn(seed: int, preemption_mode: str = "recompute", num_calls: int = 24) -> Load:
    """Return a load whose outputs do not fit the cache together, in most cases."""
    rng = np.random.default_rng(seed)
    block_size = int(rng.choice([2, 4, 8]))
    num_blocks = int(rng.integers(40, 160))
    most = (num_blocks - num_blocks // 100) * block_size
    # A swap keeps whole blocks, so a prompt has at least one.
    prompt = rng.integers(block_size, max(most // 6, 20), num_calls)
    output = rng.integers(1, max(min(most // 3, 80), 20), num_calls)
    at_s = np.cumsum(rng.exponential(float(rng.choice([0.01, 0.1, 0.3])), num_calls))
    return Load(
        num_blocks=num_blocks,
        block_size=block_size,
        max_num_batched_tokens=int((prompt + output).max() * rng.choice([1.0, 3.0])),
        max_num_seqs=int(rng.choice([5, 24, 64])),
        preemption_mode=preemption_mode,
        calls=tuple(
            (f"r{i:03d}", float(at_s[i]), int(prompt[i]), int(output[i])) for i in range(num_calls)
        ),
    )


class Stepped(SimRun):
    """A simulated server that remembers its steps."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.told: list[Step] = []

    def _run_step(
        self, launch: Launch | None, shape: StepShape, tokens: Mapping[str, int], plan: StepPlan
    ) -> None:
        preempted = launch.preempted if launch is not None else ()
        assert list(preempted) == [p.request_id for p in plan.preempt], (
            "the engine took none itself"
        )
        self.told.append(Step(self.now_s, dict(tokens), list(preempted)))
        super()._run_step(launch, shape, tokens, plan)


def ours(load: Load) -> list[Step]:
    """Serve *load* in our simulator under ``vllm_v0``."""
    is_swapping = load.preemption_mode == "swap"
    engine = VirtualEngine(
        num_blocks=load.num_blocks,
        block_size=load.block_size,
        max_num_batched_tokens=load.max_num_batched_tokens,
        max_num_seqs=load.max_num_seqs,
        host_blocks=2_000 if is_swapping else 0,
        copy_gib_per_s=NO_TIME,
    )
    core = registry.build("vllm_v0", options={"preemption_mode": load.preemption_mode})
    run = Stepped(engine, lambda shape: load.step_s(shape.num_tokens), core)
    run.validate_every = 7
    outcomes = run.run(VirtualCall(*call) for call in load.calls)
    for name, _, _, output in load.calls:
        assert len(outcomes[name].emitted_at_s) == output
    return run.told


def assert_same(load: Load, as_by: list[Step]) -> int:
    """Assert that *load* is served here by the steps *as_by*; return their number.

    Who comes back from the host counts as one token, which is what that release computes.
    """
    mine = ours(load)
    seen: set[str] = set()
    for number, (one, other) in enumerate(zip(mine, as_by, strict=False)):
        tokens = one.tokens
        if load.preemption_mode == "swap":
            tokens = {i: 1 if i in seen else n for i, n in tokens.items()}
            seen.update(tokens)
        where = f"step {number} of {load}"
        assert (tokens, one.preempted) == (other.tokens, other.preempted), where
        assert abs(one.at_s - other.at_s) < 1e-6, where
    assert len(mine) == len(as_by)
    return len(mine)
