"""The preset ``cacheopt``: its options, its parts alone and together, what it buys and costs."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drafts import draft_for

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.latency.model import StepShape
from headway.latency.truth import Truth
from headway.papers.cacheopt.c5_swap import LONGEST_TOKENS, SweetSpot, sweet_spot_tokens
from headway.papers.cacheopt.preset import COMPONENTS
from headway.policy.draft import Draft
from headway.policy.events import Arrived, StepDone, StepScheduled
from headway.policy.plan import StepPlan
from headway.policy.swap_choice import SWAPS, Cheaper, copyable_blocks, recompute_s, swap_s
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import NO_PROMISE

PROFILE = profiles.load("llama-3.1-8b@h100")
CHAT = {"slo_ttft_ms": 2000, "slo_tbt_ms": 100}


def calls(
    num: int,
    rate_rps: float,
    seed: int,
    outputs: tuple[int, int] = (50, 500),
    prompts: tuple[int, int] = (20, 800),
) -> list[VirtualCall]:
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, num)).tolist()
    return [
        VirtualCall(
            f"r{i:03d}",
            at_s[i],
            int(rng.integers(*prompts)),
            int(rng.integers(*outputs)),
            CHAT if i % 3 else {},
            max_output_tokens=1000,
        )
        for i in range(num)
    ]


class Watch:
    """A run that remembers its plans."""

    def __init__(
        self, engine: VirtualEngine, policy: str, noise: float = 0.0, **options: Any
    ) -> None:
        core = registry.build(policy, options=options)
        self.plans: list[StepPlan] = []
        self.truth = Truth(PROFILE, noise=noise, seed=1)
        self.run = SimRun(engine, self.truth, core, keep_schedule=True)
        ask = core.plan

        def plan(view: EngineView, now_s: float) -> StepPlan:
            self.plans.append(ask(view, now_s))
            if len(self.plans) % 8 == 0:
                core.validate()
            return self.plans[-1]

        core.plan = plan  # type: ignore[method-assign]

    def serve(self, served: list[VirtualCall]) -> None:
        outcomes = self.run.run(served)
        for call in served:
            assert len(outcomes[call.request_id].emitted_at_s) == call.num_output_tokens
        pool = self.run.machine.pool
        assert pool.num_free == pool.num_total
        assert self.run.machine.host.num_free == self.run.engine.host_blocks

    @property
    def num_preempted(self) -> int:
        return sum(self.run.num_preemptions.values())

    @property
    def num_planned(self) -> int:
        return sum(len(p.preempt) for p in self.plans)


PRESSED = VirtualEngine(num_blocks=700, max_num_batched_tokens=2048, max_num_seqs=64)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("block_size", [16, 1])
def test_the_engine_never_preempts_on_its_own(asynchronous: bool, block_size: int) -> None:
    """With proactive allocation nobody runs out of KV inside a step: every victim was planned."""
    engine = VirtualEngine(
        num_blocks=11200 // block_size,
        block_size=block_size,
        max_num_seqs=64,
        asynchronous=asynchronous,
    )
    watch = Watch(engine, "cacheopt")
    watch.serve(calls(60, 9.0, 1))
    assert watch.num_preempted == watch.num_planned


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_nor_does_vllms_own_scheduler(lab: Any, asynchronous: bool) -> None:
    """Steered by the same plans, vLLM's loop finds KV for everybody in every step."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    engine = lab.Engine(
        num_blocks=70,
        max_num_batched_tokens=512,
        max_num_seqs=32,
        asynchronous=asynchronous,
        headway={"policy": "cacheopt"},
    )
    run = lab.start(engine)
    core, planned = run.scheduler.headway, []
    ask = core.plan

    def plan(view: EngineView, now_s: float) -> StepPlan:
        made = ask(view, now_s)
        planned.extend(made.preempt)
        return made

    core.plan = plan
    lab.all_served(run.run(lab.mixed(80, 4.0, 1)))
    lab.is_clean(run)
    assert run.num_preemptions == len(planned)


def test_it_preempts_at_most_a_quarter_as_often_as_first_come_first_served() -> None:
    """Same load, same cache: what reservations, the reserve and looking ahead are for."""
    ours, theirs = Watch(PRESSED, "cacheopt"), Watch(PRESSED, "fcfs")
    for watch in (ours, theirs):
        watch.serve(calls(110, 9.0, 2))
    assert theirs.num_preempted >= 20, "the cache was not short"
    assert ours.num_preempted <= theirs.num_preempted / 4


def test_who_becomes_critical_together_is_begun_in_time() -> None:
    """Twelve prompts wait for their books with KV free; together they take nine steps.

    Each alone would take one: by that reckoning (``urgency`` "own") most begin too late.
    """
    engine = VirtualEngine(num_blocks=350, max_num_batched_tokens=128, max_num_seqs=64)
    chat = {"slo_ttft_ms": 500, "slo_tbt_ms": 100}
    served = [VirtualCall("owner", 0.0, 3000, 200, {}, max_output_tokens=1000)]
    served += [VirtualCall(f"r{i}", 1.0, 80, 120, chat, max_output_tokens=1000) for i in range(18)]
    num_late = {}
    for urgency in ("own", "queue"):
        watch = Watch(engine, "cacheopt", urgency=urgency)
        watch.serve(served)
        ttfts_s = [watch.run.outcomes[c.request_id].emitted_at_s[0] - 1.0 for c in served[1:]]
        assert sum(ttft_s > 0.4 for ttft_s in ttfts_s) == 12, "the books had room"
        num_late[urgency] = sum(ttft_s > 0.5 for ttft_s in ttfts_s)
    assert num_late["queue"] == 0
    assert num_late["own"] >= 8


@pytest.mark.parametrize(
    "components",
    ["", *COMPONENTS, *(",".join(c for c in COMPONENTS if c != out) for out in COMPONENTS)],
)
def test_each_component_alone_and_each_left_out(components: str) -> None:
    """Whatever is switched on, everybody is served and the books balance."""
    engine = VirtualEngine(
        num_blocks=200, max_num_batched_tokens=512, max_num_seqs=32, host_blocks=90
    )
    watch = Watch(engine, "cacheopt", components=components)
    watch.serve(calls(24, 20.0, 3, (20, 200)))
    if "C5" not in components:
        assert watch.run.num_preemptions["swap"] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": "C1,C9"}, ["C9", "C1,C2,C3,C4,C5,B"]),
        ({"components": 3}, ["components"]),
        ({"look_ahead_steps": 0}, ["look_ahead_steps"]),
        ({"reserve_blocks": -1}, ["reserve_blocks", "0 or more"]),
        ({"buffer_tokens": True}, ["buffer_tokens"]),
        ({"sweet_spot_tokens": 0}, ["sweet_spot_tokens"]),
        ({"chunk_tokens": "all"}, ["chunk_tokens"]),
        ({"max_wait_s": 0}, ["max_wait_s"]),
        ({"urgency": "late"}, ["urgency", "queue, own"]),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], words: list[str]) -> None:
    """It names the mistake and what is allowed, at the start."""
    with pytest.raises(UserError) as caught:
        registry.build("cacheopt", options=options)
    for word in words:
        assert word in str(caught.value)


# -- swap or recompute -----------------------------------------------------------------------


def test_the_sweet_spot_is_where_the_two_cross() -> None:
    """One token less is computed faster; on a slow link nothing is ever copied faster."""
    latency = registry.build("slack").known.latency

    def compute_s(num_tokens: int) -> float:
        one_s = latency.predict_s(StepShape().with_chunk(1, 0))
        return latency.predict_s(StepShape().with_chunk(num_tokens, 0)) - one_s

    # A link that is as fast as computing somewhere in the middle.
    bytes_per_s = 2 * 3000 * 131_072 / compute_s(3000)
    view = EngineView(1000, 1000, 16, 64, 2048, 0, 500, bytes_per_s, 131_072)
    length = sweet_spot_tokens(latency, view)
    assert 2900 < length < 3100
    for at, swaps in ((length - 1, False), (length, True)):
        assert (2 * at * 131_072 / bytes_per_s < compute_s(at)) is swaps
    assert sweet_spot_tokens(latency, replace(view, copy_bytes_per_s=1e3)) == LONGEST_TOKENS


def swapping(
    choice: Any, gib_per_s: float, seed: int, prompts: tuple[int, int] = (20, 800)
) -> tuple[Watch, list[tuple[str, int, int]]]:
    """Serve under pressure with room to swap; return each preemption's way, tokens and step."""
    engine = VirtualEngine(
        num_blocks=600, max_num_seqs=64, host_blocks=5000, copy_gib_per_s=gib_per_s
    )
    watch = Watch(engine, "fcfs", noise=0.1)
    watch.run.policy.planner.swap = choice  # type: ignore[union-attr]
    rows: list[tuple[str, int, int]] = []
    preempt = watch.run.machine.preempt

    def note(job: Any, how: str, now_s: float) -> None:
        rows.append((how, job.num_computed, len(watch.run.schedule)))
        preempt(job, how, now_s)

    watch.run.machine.preempt = note  # type: ignore[method-assign]
    watch.serve(calls(90, 12.0, seed, prompts=prompts))
    return watch, rows


def measured(
    watch: Watch, rows: list[tuple[str, int, int]], gib_per_s: float
) -> list[tuple[float, float]]:
    """Return, for each preemption, the seconds of the way taken and those of the better way.

    Measured afterwards: the copies' seconds on the link, and the seconds that computing as many
    tokens adds to the step that followed, with a noise of its own.
    """
    noisy, plain = Truth(PROFILE, noise=0.1, seed=99), Truth(PROFILE)
    pairs = []
    for how, num_tokens, step in rows:
        _, tokens = watch.run.schedule[min(step, len(watch.run.schedule) - 1)]
        shape = StepShape(0, 0, len(tokens), 400 * len(tokens))
        noise = noisy(shape) / plain(shape)
        compute_s = noise * (plain(shape.with_chunk(num_tokens, 0)) - plain(shape))
        copy_s = 2 * (num_tokens // 16) * 16 * 131_072 / (gib_per_s * 1024**3)
        pairs.append((copy_s if how == "swap" else compute_s, min(copy_s, compute_s)))
    return pairs


@pytest.mark.parametrize(
    ("gib_per_s", "prompts"), [(12.0, (20, 800)), (25.0, (800, 2500)), (40.0, (20, 800))]
)
def test_the_choice_is_right_by_measured_times(gib_per_s: float, prompts: tuple[int, int]) -> None:
    """In at least 90 % of preemptions the way taken was the faster, with noisy step times."""
    watch, rows = swapping(Cheaper(), gib_per_s, 4, prompts)
    assert len(rows) >= 20
    right = sum(took_s == best_s for took_s, best_s in measured(watch, rows, gib_per_s))
    assert right >= 0.9 * len(rows), f"{right} of {len(rows)}"


@pytest.mark.parametrize("gib_per_s", [18.0, 25.0])
def test_where_both_ways_take_as_long_little_is_lost(gib_per_s: float) -> None:
    """Short requests, a link about as fast as prefill: often the slower way, yet under 10 % lost.

    The step-time model is a line; what this GPU takes for a token bends at 384 of them.
    """
    watch, rows = swapping(Cheaper(), gib_per_s, 4)
    pairs = measured(watch, rows, gib_per_s)
    assert sum(took_s for took_s, _ in pairs) <= 1.1 * sum(best_s for _, best_s in pairs)
    assert {how for how, *_ in rows} == {"swap", "recompute"}


def test_a_full_host_recomputes() -> None:
    """What the host has no room for is thrown away, and planned so."""
    engine = VirtualEngine(num_blocks=600, max_num_seqs=64, host_blocks=30)
    watch = Watch(engine, "fcfs")
    watch.run.policy.planner.swap = SweetSpot(16)  # type: ignore[union-attr]
    watch.serve(calls(150, 12.0, 4))
    kinds = watch.run.num_preemptions
    planned = [p.how for plan in watch.plans for p in plan.preempt]
    assert kinds["recompute"] > 0
    assert kinds["swap"] == planned.count("swap")
    assert math.fsum(kinds.values()) >= 20


def victim_of(ctx_tokens: int, found: int, view: EngineView) -> tuple[Draft, Request]:
    """Return a plan in which one decode of *ctx_tokens* tokens may lose its KV."""
    core = registry.build("fcfs")
    core.observe(Arrived(0.0, "r", 0.0, ctx_tokens, 50, NO_PROMISE))
    core.observe(StepScheduled(0.0, {"r": ctx_tokens - found}, {"r": found}))
    core.observe(StepDone(0.1, {"r": 1}))
    return draft_for(core, view, 0.1), core.live.requests["r"]


def test_seconds_count_the_queue_both_ways_and_the_prefix_cache() -> None:
    """100 blocks out, 100 or 60 back, behind what is queued; the last token is computed."""
    view = EngineView(1000, 1000, 16, 64, 4096, 0, 500, 16 * 1000.0, 1)
    draft, victim = victim_of(1600, 0, view)
    tail_s = recompute_s(draft, victim) - (
        draft.given.latency.predict_s(draft.shape.with_chunk(1600, 0))
        - draft.given.latency.predict_s(draft.shape.with_chunk(1, 1600))
    )
    assert swap_s(draft, victim) == pytest.approx(200 / 1000 + tail_s, abs=1e-3)
    draft, victim = victim_of(1600, 640, replace(view, num_queued_copy_blocks=7))
    assert swap_s(draft, victim) == pytest.approx((7 + 100 + 60) / 1000 + tail_s, abs=1e-3)
    computed = draft.given.latency.predict_s(
        draft.shape.with_chunk(961, 640)
    ) - draft.given.latency.predict_s(draft.shape)
    assert recompute_s(draft, victim) == pytest.approx(computed)
    assert copyable_blocks(draft, victim) == 100
    draft.num_copied_blocks = 401
    assert copyable_blocks(draft, victim) == 0, "the host has room for 500, this plan took 401"


def test_swap_can_be_forced_where_it_costs_more() -> None:
    """A link of a byte a second: only ``always`` uses it, and not beyond the host's room."""
    view = EngineView(1000, 1000, 16, 64, 4096, 0, 500, 1.0, 1)
    draft, victim = victim_of(1600, 0, view)
    how = {name: choice().how(draft, victim) for name, choice in SWAPS.items()}
    assert how == {"cheaper": "recompute", "recompute": "recompute", "always": "swap"}
    draft.num_copied_blocks = 401
    assert SWAPS["always"]().how(draft, victim) == "recompute"
