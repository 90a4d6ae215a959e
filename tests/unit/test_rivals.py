"""The rivals: each serves everybody, and each has its own rule pinned by a small example."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest

from headway import registry
from headway.errors import UserError
from headway.latency.fixed import FixedModel
from headway.policy.draft import Draft
from headway.request import Request
from headway.rivals.xllm import remaining_s, step_limit_s, urgent_s
from headway.slo import NO_PROMISE, Slo

RIVALS = (
    "orca",
    "trt_noevict",
    "fastgen",
    "s3",
    "rlp",
    "fastserve",
    "pastfuture",
    "qoserve",
    "xllm",
    "sliding",
    "vllm_v0",
)
SLOS = (
    NO_PROMISE,
    Slo(ttft_s=0.5, tbt_s=0.05, class_name="chat"),
    Slo(ttft_s=2.0, tbt_s=0.02, class_name="code"),
    Slo(jct_s=3.0, class_name="batch"),
)


def flat(fixed_s: float = 0.01, token_s: float = 0.001) -> FixedModel:
    """A latency model that is a line in the tokens of a step: no learning, no noise."""
    return FixedModel((fixed_s, 0.0, token_s, token_s, 0.0, 0.0, 0.0))


def server(fake_engine: Any, policy: str, latency: Any = None, **engine: Any) -> Any:
    options = engine.pop("options", {})
    core = registry.build(policy, options=options, latency=latency)
    if latency is not None:
        engine.setdefault("step_time_s", latency.predict_s)
    return fake_engine(core, **engine)


def chunks(one: Any) -> list[tuple[str, int, bool]]:
    return [(c.request_id, c.num_tokens, c.admit) for c in one.chunks]


# -- everybody ------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", RIVALS)
@pytest.mark.parametrize(("seed", "depth"), [(0, 0), (1, 1), (2, 0), (2, 1)])
def test_serves_everyone(fake_engine: Any, policy: str, depth: int, seed: int) -> None:
    """Under KV pressure every request gets every token; the books balance at every step."""
    rng = Random(seed)
    engine = server(fake_engine, policy, num_blocks=24, depth=depth)
    for i in range(40):
        output = rng.randrange(1, 24)
        engine.arrive(f"r{i}", rng.randrange(1, 70), output, output + 8, rng.choice(SLOS))
        for _ in range(rng.randrange(4)):
            engine.next_plan()
    for _ in range(6000):
        if not engine.jobs:
            break
        engine.next_plan()
    engine.drain(10)
    assert set(engine.finished) == {f"r{i}" for i in range(40)}
    assert set(engine.finished.values()) <= {"stopped", "length"}
    assert engine.num_free == engine.num_blocks
    assert len(engine.core.known.finishes) == 0


@pytest.mark.parametrize(
    ("policy", "options", "word"),
    [
        ("s3", {"predictor": "oracle"}, "histogram"),
        ("rlp", {"predictor": 3}, "max_tokens"),
        ("rlp", {"bucket_tokens": 0}, "bucket_tokens"),
        ("s3", {"window": 0}, "window"),
        ("fastserve", {"starve_s": 0}, "starve_s"),
        ("fastserve", {"num_levels": 1.5}, "num_levels"),
        ("pastfuture", {"reserve_share": 1.0}, "reserve_share"),
        ("qoserve", {"alpha_s": -1}, "alpha_s"),
        ("fastgen", {"chunk_tokens": 0}, "chunk_tokens"),
        ("orca", {"chunk_tokens": 5}, "none"),
        ("vllm_v0", {"max_num_batched_tokens": 0}, "max_num_batched_tokens"),
        ("vllm_v0", {"max_num_seqs": 2.5}, "max_num_seqs"),
        ("vllm_v0", {"preemption_mode": "copy"}, "recompute, swap"),
    ],
)
def test_a_wrong_option_is_one_sentence(policy: str, options: dict[str, Any], word: str) -> None:
    """It names the option or what is allowed."""
    with pytest.raises(UserError, match=word):
        registry.build(policy, options=options)


def test_who_heeds_promises() -> None:
    """Only the rivals whose papers know promises look at them."""
    heeding = {p for p in RIVALS if registry.build(p).known.heeds_promises}
    assert heeding == {"qoserve", "xllm", "sliding"}


# -- reservations ---------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["orca", "trt_noevict"])
def test_the_worst_case_is_reserved(fake_engine: Any, policy: str) -> None:
    """Ten blocks: two requests of at most four blocks fit, a third waits though KV is free."""
    engine = server(fake_engine, policy, num_blocks=10)
    for name in "abc":
        engine.arrive(name, 4, 2, 12)
    assert chunks(engine.next_plan()) == [("a", 4, True), ("b", 4, True)]
    assert engine.num_free == 8
    assert chunks(engine.next_plan()) == []
    engine.drain(50)
    assert engine.num_forced == 0
    assert not any(p.preempt for p in engine.plans)


@pytest.mark.parametrize("policy", ["orca", "trt_noevict"])
@pytest.mark.parametrize("seed", range(3))
def test_the_worst_case_never_evicts(fake_engine: Any, policy: str, seed: int) -> None:
    """No request that fits the cache is ever preempted, however short KV is."""
    rng = Random(seed)
    engine = server(fake_engine, policy, num_blocks=20)
    for i in range(30):
        engine.arrive(f"r{i}", rng.randrange(1, 40), rng.randrange(1, 30), 36)
    engine.drain(3000)
    assert engine.num_forced == 0
    assert not any(p.preempt for p in engine.plans)


def test_orca_does_not_cut_a_prompt_that_fits_a_step(fake_engine: Any) -> None:
    """The second prompt waits for a step with room; TensorRT-LLM's is cut to fill the step."""
    for policy, second in (("orca", []), ("trt_noevict", [("b", 24, True)])):
        engine = server(fake_engine, policy)
        engine.arrive("a", 40, 3)
        engine.arrive("b", 40, 3)
        assert chunks(engine.next_plan()) == [("a", 40, True), *second]


def test_fastgen_fills_the_budget_exactly(fake_engine: Any) -> None:
    """Short prompts and the beginning of a long one make up the constant budget."""
    engine = server(fake_engine, "fastgen", options={"chunk_tokens": 32})
    for name, prompt in (("a", 10), ("b", 8), ("long", 60), ("c", 5)):
        engine.arrive(name, prompt, 8)
    assert chunks(engine.next_plan()) == [("a", 10, True), ("b", 8, True), ("long", 14, True)]
    assert chunks(engine.next_plan()) == [("long", 30, False)]
    assert chunks(engine.next_plan()) == [("long", 16, False), ("c", 5, True)]
    assert [p.token_budget for p in engine.plans] == [32, 32, 23]


def teach(engine: Any, name: str, lengths: list[int]) -> None:
    """Let requests of a class end with these lengths, one after another."""
    for i, length in enumerate(lengths):
        engine.arrive(f"{name}{i}", 1, length, 40, Slo(class_name=name))
        engine.drain(200)


def test_s3_evicts_and_doubles_who_outgrows_its_bucket(fake_engine: Any) -> None:
    """Eight reserved (edge of a tenth of 40): at its ninth token the request goes and returns."""
    engine = server(fake_engine, "s3", num_blocks=10)
    teach(engine, "x", [6] * 8)
    engine.arrive("liar", 4, 14, 40, Slo(class_name="x"))
    engine.next_plan()
    assert engine.core.live.requests["liar"].predicted_output_tokens == 8
    for i in range(3):
        engine.arrive(f"other{i}", 20, 6, 40, Slo(class_name="x"))
    plans = []
    while not plans or not plans[-1].preempt:
        plans.append(engine.next_plan())
    assert [p.request_id for p in plans[-1].preempt] == ["liar"]
    assert engine.jobs["liar"].num_emitted == 9
    assert engine.core.live.requests["liar"].predicted_output_tokens == 16
    engine.drain(300)
    assert engine.finished["liar"] == "stopped"


def test_s3_takes_the_largest_reservation_first(fake_engine: Any) -> None:
    """Decreasing first fit, within the window that was waiting together."""
    engine = server(fake_engine, "s3", num_blocks=100, options={"predictor": "max_tokens"})
    for name, prompt in (("small", 4), ("large", 30), ("middle", 12)):
        engine.arrive(name, prompt, 3)
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["large", "middle", "small"]


def test_rlp_runs_one_length_at_a_time(fake_engine: Any) -> None:
    """The short bucket first, the long one when it has ended; newcomers wait for a new pool."""
    engine = server(
        fake_engine, "rlp", num_blocks=100, options={"predictor": "max_tokens", "bucket_tokens": 10}
    )
    for name, bound in (("long", 30), ("a", 8), ("b", 9)):
        engine.arrive(name, 4, 5, bound)
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["a"]  # 8 and 9 are bounds, not edges
    engine.arrive("late", 4, 5, 8)
    order = [i for p in (engine.next_plan() for _ in range(24)) for i, _, _ in chunks(p)]
    assert order == ["b", "long", "late"]


def test_rlp_collects_failures_behind_the_pool(fake_engine: Any) -> None:
    """Who exceeds its bucket is evicted and comes back after the pool's other buckets."""
    engine = server(fake_engine, "rlp", num_blocks=100, options={"bucket_tokens": 5})
    teach(engine, "s", [4] * 8)
    teach(engine, "l", [14] * 8)
    engine.plans.clear()
    engine.arrive("liar", 4, 20, 40, Slo(class_name="s"))
    engine.arrive("honest", 4, 4, 40, Slo(class_name="s"))
    engine.arrive("long", 4, 14, 40, Slo(class_name="l"))
    engine.drain(200)
    started = [i for p in engine.plans for i, _, admit in chunks(p) if admit]
    assert started == ["liar", "honest", "long", "liar"]
    evicted = [v.request_id for p in engine.plans for v in p.preempt]
    assert evicted == ["liar"]


def test_pastfuture_draws_from_the_past(fake_engine: Any) -> None:
    """With nothing learned the bound counts; after short outputs three run beside each other."""
    engine = server(fake_engine, "pastfuture", num_blocks=20)
    for name in "abc":
        engine.arrive(name, 8, 4, 40)
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["a"]
    engine.drain(100)
    for name in "abc":
        engine.arrive(f"2{name}", 8, 4, 40)
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["2a", "2b", "2c"]


# -- FastServe ------------------------------------------------------------------------------


def fastserve(fake_engine: Any, **engine: Any) -> tuple[Any, Any]:
    options = {"quantum_s": 0.04, **engine.pop("options", {})}
    made = server(fake_engine, "fastserve", flat(), options=options, **engine)
    return made, made.core.planner.ranking


def test_fastserve_skips_levels_by_the_first_iteration(fake_engine: Any) -> None:
    """Quanta 40, 80, 160 ms: prompts of 25, 40 and 100 tokens (10 ms + 1 ms each) join 0, 1, 2."""
    engine, queue = fastserve(fake_engine, max_step_tokens=256)
    for name, prompt in (("big", 100), ("mid", 40), ("small", 25)):
        engine.arrive(name, prompt, 4)
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["small", "mid", "big"]
    levels = {i: queue.level(r) for i, r in engine.core.live.requests.items()}
    assert levels == {"big": 2, "mid": 1, "small": 0}


def test_fastserve_demotes_by_attained_service(fake_engine: Any) -> None:
    """Steps of 11 ms: with 15 ms for the prompt, the fourth exceeds the 40 ms of level 0."""
    engine, queue = fastserve(fake_engine)
    engine.arrive("a", 5, 30)
    levels = []
    for _ in range(6):
        engine.next_plan()
        levels.append(queue.level(engine.core.live.requests["a"]))
    assert levels == [0, 0, 0, 0, 1, 1]


def test_fastserve_lets_low_levels_sit_out(fake_engine: Any) -> None:
    """With a batch of one a newcomer computes while the demoted stream keeps its KV.

    Also in steps without any prompt, where other presets need not ask who decodes.
    """
    engine, _ = fastserve(fake_engine, options={"max_batch": 1})
    engine.arrive("old", 5, 30)
    for _ in range(6):
        engine.next_plan()
    engine.arrive("new", 5, 3)
    held = [engine.next_plan() for _ in range(3)]
    assert [p.hold for p in held] == [("old",)] * 3
    assert chunks(held[0]) == [("new", 5, True)]
    assert not any(p.preempt for p in held)
    assert engine.next_plan().hold == ()
    assert engine.finished["new"] == "length"


def test_fastserve_evicts_a_lower_level_only(fake_engine: Any) -> None:
    """KV for a newcomer comes from the demoted stream; an equal has to wait."""
    engine, _ = fastserve(fake_engine, num_blocks=6)
    engine.arrive("old", 12, 12)
    engine.next_plan()
    engine.arrive("equal", 12, 2)
    assert not engine.next_plan().preempt
    for _ in range(4):
        last = engine.next_plan()
        if last.preempt:
            break
    assert [v.request_id for v in last.preempt] == ["old"]
    assert chunks(last) == [("equal", 12, True)]


@pytest.mark.parametrize(("starve_s", "starts"), [(0.1, True), (1000.0, False)])
def test_fastserve_promotes_the_starving(fake_engine: Any, starve_s: float, starts: bool) -> None:
    """A long prompt behind an endless stream of newcomers starts only by its promotion."""
    engine, _ = fastserve(fake_engine, options={"max_batch": 1, "starve_s": starve_s})
    engine.arrive("old", 60, 3)
    started = set()
    for i in range(30):
        engine.arrive(f"n{i}", 5, 1)
        started |= {name for name, _, _ in chunks(engine.next_plan())}
    assert ("old" in started) is starts


# -- deadlines ------------------------------------------------------------------------------


def test_qoserve_spends_the_slack_of_early_tokens(fake_engine: Any) -> None:
    """The chunk is what fits the least slack, which grows with every token that came early.

    10 ms + 1 ms a token; the stream's first token came after 15 ms, due after 100 ms, then
    every 30 ms. The next is due at 130 ms: 115 ms of slack hold 1 decode and 104 tokens.
    """
    engine = server(fake_engine, "qoserve", flat(), max_step_tokens=512, num_blocks=500)
    engine.arrive("stream", 5, 40, slo=Slo(ttft_s=0.1, tbt_s=0.03))
    engine.next_plan()
    engine.arrive("long", 400, 4, slo=Slo(ttft_s=5.0, tbt_s=1.0))
    assert chunks(engine.next_plan()) == [("long", 104, True)]
    assert chunks(engine.next_plan()) == [("long", 19, False)]


@pytest.mark.parametrize(
    ("alpha_s", "order"), [(1e-6, ["long", "short"]), (0.01, ["short", "long"])]
)
def test_qoserve_weighs_due_time_against_work(
    fake_engine: Any, alpha_s: float, order: list[str]
) -> None:
    """Little alpha is earliest due date, much is shortest remaining prompt."""
    engine = server(fake_engine, "qoserve", flat(), options={"alpha_s": alpha_s})
    engine.arrive("short", 10, 2, slo=Slo(ttft_s=1.1))
    engine.arrive("long", 50, 2, slo=Slo(ttft_s=1.0))
    assert [i for i, _, _ in chunks(engine.next_plan())] == order


def test_qoserve_relegates_who_would_be_late(fake_engine: Any) -> None:
    """A prompt of 60 ms due in 50 ms goes behind one that can be on time."""
    engine = server(fake_engine, "qoserve", flat(fixed_s=0.0))
    engine.arrive("lost", 60, 2, slo=Slo(ttft_s=0.06 * 0.99 + 1e-3 * 0.5, tbt_s=1.0))
    engine.arrive("kept", 40, 2, slo=Slo(ttft_s=0.07, tbt_s=1.0))
    one = engine.next_plan()
    assert one.demoted == ("lost",)
    assert [i for i, _, _ in chunks(one)] == ["kept", "lost"]


def test_xllm_budget_and_urgency() -> None:
    """The three formulas of its mixed scheduler."""
    assert step_limit_s(0.2, 0.1) == 0.2
    assert step_limit_s(0.01, 0.1) == pytest.approx(0.065)
    assert step_limit_s(math.inf, 0.1) == pytest.approx(0.065)
    assert step_limit_s(0.3, math.inf) == 0.3
    assert urgent_s(0.05, 0.1, 0.02) == pytest.approx(0.0625)
    assert urgent_s(0.05, math.inf, 0.02) == 0.05
    assert urgent_s(0.05, 0.02, 0.02) == math.inf
    request = Request("a", Slo(ttft_s=1.0, tbt_s=0.1), 10.0, 5, 20)
    assert remaining_s(request, 10.4) == pytest.approx(0.6)
    request.num_output_tokens, request.first_token_at_s = 3, 10.2
    assert remaining_s(request, 10.4) == pytest.approx(0.1)


def test_xllm_urgent_goes_before_a_stream_with_time(fake_engine: Any) -> None:
    """The step may take 120.5 ms: the urgent prompt takes 120, so the patient stream sits out."""
    engine = server(fake_engine, "xllm", flat(), max_step_tokens=512, num_blocks=200)
    engine.arrive("patient", 5, 30, slo=Slo(ttft_s=5.0, tbt_s=2.0))
    engine.next_plan()
    engine.arrive("urgent", 110, 3, slo=Slo(ttft_s=0.1205, tbt_s=0.1))
    one = engine.next_plan()
    assert chunks(one) == [("urgent", 110, True)]
    assert one.hold == ("patient",)


def test_sliding_orders_by_protection_urgency_and_work(fake_engine: Any) -> None:
    """Urgent before easy, short before long, the unpromised and the hopeless last."""
    engine = server(fake_engine, "sliding", flat(fixed_s=0.0), max_step_tokens=512, num_blocks=200)
    engine.arrive("none", 3, 2)
    engine.arrive("long", 90, 2, slo=Slo(ttft_s=9.0))
    engine.arrive("short", 20, 2, slo=Slo(ttft_s=9.0))
    engine.arrive("urgent", 100, 2, slo=Slo(ttft_s=0.1015))
    assert [i for i, _, _ in chunks(engine.next_plan())] == ["urgent", "short", "long", "none"]


def test_a_context_is_walked_once(fake_engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holder, prioritiser and batcher report one decision."""
    engine, _ = fastserve(fake_engine)
    step = engine.core.planner
    seen: list[Draft] = []
    walk = step._walk
    monkeypatch.setattr(step, "_walk", lambda draft: (seen.append(draft), walk(draft))[1])
    engine.arrive("a", 5, 3)
    engine.next_plan()
    assert len(seen) == 1
