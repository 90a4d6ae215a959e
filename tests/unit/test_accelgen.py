"""AccelGen's rules, each pinned by a small example, and all of them serving everybody."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import pytest
from drafts import draft_of

from headway import registry
from headway.errors import UserError
from headway.kit.tightest import TightestRecent
from headway.latency import profile
from headway.latency.fixed import FixedModel
from headway.papers.accelgen.a1_chunk import GRAIN_TOKENS, DynamicChunk, saturating_tokens
from headway.papers.accelgen.a2_order import ByTimeLeft, time_left_s
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import NO_PROMISE, Slo

SLOS = (
    NO_PROMISE,
    Slo(ttft_s=0.5, tbt_s=0.05, class_name="chat"),
    Slo(ttft_s=2.0, tbt_s=0.02, class_name="code"),
    Slo(jct_s=3.0, class_name="batch"),
)
WAYS: tuple[dict[str, Any], ...] = (
    {},
    {"chunking": False},
    {"ordering": False},
    {"packing": False},
    {"packer": "aligned"},
    {"packer": "exact"},
    {"exact_chunk": True},
    {"with_context": False, "late_last": False, "careful": False},
    {"chunking": False, "ordering": False, "packing": False},
)


def flat(fixed_s: float = 0.01, token_s: float = 0.001) -> FixedModel:
    """A latency model that is a line in the tokens of a step: no learning, no noise."""
    return FixedModel((fixed_s, 0.0, token_s, token_s, 0.0, 0.0, 0.0))


def server(fake_engine: Any, options: dict[str, Any] | None = None, **engine: Any) -> Any:
    latency = engine.pop("latency", None) or flat()
    core = registry.build("accelgen", options=options or {}, latency=latency)
    engine.setdefault("step_time_s", latency.predict_s)
    engine.setdefault("max_step_tokens", 256)
    engine.setdefault("num_blocks", 200)
    return fake_engine(core, **engine)


def chunks(one: Any) -> list[tuple[str, int, bool]]:
    return [(c.request_id, c.num_tokens, c.admit) for c in one.chunks]


# -- everybody --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", WAYS, ids=str)
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("seed", [1])
def test_serves_everyone(fake_engine: Any, options: dict[str, Any], depth: int, seed: int) -> None:
    """Under KV pressure every request gets every token; the books balance at every step."""
    rng = Random(seed)
    core = registry.build("accelgen", options=options)
    engine = fake_engine(core, num_blocks=24, depth=depth)
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


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"chunking": 1}, "chunking"),
        ({"ordering": "no"}, "ordering"),
        ({"packing": None}, "packing"),
        ({"exact_chunk": "yes"}, "exact_chunk"),
        ({"packer": "best"}, "nearest, aligned, exact"),
        ({"packer": ["nearest"]}, "packer"),
        ({"gamma_s": 0}, "gamma_s"),
        ({"max_wait_s": -1}, "max_wait_s"),
        ({"chunk_tokens": 5}, "gamma_s"),
    ],
)
def test_a_wrong_option_is_one_sentence(options: dict[str, Any], word: str) -> None:
    """It names the option or what is allowed."""
    with pytest.raises(UserError, match=word):
        registry.build("accelgen", options=options)


# -- A1 ---------------------------------------------------------------------------------------


def test_the_saturating_step_of_the_papers_model() -> None:
    """On the roofline of OPT-13B on an A100 it is a grain above the 768 tokens reported."""
    opt = profile.load("opt-13b@a100")
    assert saturating_tokens(opt.step_s, opt.max_num_batched_tokens) == 768 + GRAIN_TOKENS


def test_a_promise_scales_the_saturating_step(fake_engine: Any) -> None:
    """S_b = S_pf * SLO_min / T_pf: with 64 tokens in 74 ms, 37 ms allow 32, less 2 % kept
    back; never none, nor more than the engine's own."""
    engine = server(fake_engine, max_step_tokens=64)
    engine.arrive("r", 1, 5)
    engine.step()
    view = engine.view
    contexts: list[Any] = []
    engine.core.planner.hold = lambda draft: contexts.append(draft) or ()
    engine.core.plan(view, engine.now_s)
    budget = DynamicChunk(TightestRecent(), with_context=False)
    tokens = [budget.tokens(contexts[0], s) for s in (0.037, 0.0185, 1e-9, math.inf, 0.148)]
    assert tokens == [31, 15, 1, 64, 64]
    assert budget.longest_s(contexts[0], 0.037) == pytest.approx(31 / 64 * 0.074)
    assert budget.longest_s(contexts[0], math.inf) == pytest.approx(0.074)


def test_the_tightest_promise_in_the_step_decides_its_length(fake_engine: Any) -> None:
    """A long prompt alone fills the engine's step; beside a stream only what its gap leaves."""
    engine = server(fake_engine, max_step_tokens=256)
    engine.arrive("long", 700, 2, slo=Slo(ttft_s=30.0, tbt_s=1.0))
    assert chunks(engine.next_plan()) == [("long", 256, True)]
    engine.arrive("chat", 4, 20, slo=Slo(ttft_s=0.5, tbt_s=0.08))
    assert ("chat", 4, True) in chunks(engine.next_plan())
    one = engine.next_plan()
    assert [i for i, *_ in chunks(one)] == ["long"]
    # S_pf is 128 tokens in 138 ms. The line through the origin forgets the fixed 10 ms.
    assert one.token_budget == int(0.98 * 0.08 / (0.138 / 128)) == 72
    assert one.predicted_s == pytest.approx(0.082)


def test_an_exact_step_is_the_longest_that_keeps_the_promise(fake_engine: Any) -> None:
    """With 10 ms before the first token and 1 ms each, 80 ms less 2 % hold 68 tokens: as many as
    a search of every size finds, where the line through the origin planned 72."""
    engine = server(fake_engine, {"exact_chunk": True}, max_step_tokens=256)
    engine.arrive("long", 700, 2, slo=Slo(ttft_s=30.0, tbt_s=1.0))
    engine.next_plan()
    engine.arrive("chat", 4, 20, slo=Slo(ttft_s=0.5, tbt_s=0.08))
    engine.next_plan()
    one = engine.next_plan()
    assert one.token_budget == max(n for n in range(256) if 0.01 + 0.001 * n <= 0.98 * 0.08) == 68
    assert one.predicted_s == pytest.approx(0.078)
    engine.drain(50)


def test_sizes_of_an_exact_step(fake_engine: Any) -> None:
    """None below 1, none above the engine's; the time it expects is that of its size."""
    engine = server(fake_engine, max_step_tokens=64)
    engine.arrive("r", 1, 5)
    engine.step()
    contexts: list[Any] = []
    engine.core.planner.hold = lambda draft: contexts.append(draft) or ()
    engine.core.plan(engine.view, engine.now_s)
    budget = DynamicChunk(TightestRecent(), with_context=False, exact=True)
    promises_s = (0.037, 0.0185, 1e-9, math.inf, 0.148)
    assert [budget.tokens(contexts[0], s) for s in promises_s] == [26, 8, 1, 64, 64]
    assert budget.longest_s(contexts[0], 0.037) == pytest.approx(0.036)
    assert budget.longest_s(contexts[0], math.inf) == pytest.approx(0.074)


def test_a_long_prompt_is_finished_before_another_is_opened(fake_engine: Any) -> None:
    """While one is in progress a second long one waits, though a short one may come along."""
    engine = server(fake_engine, max_step_tokens=64)
    loose = Slo(ttft_s=60.0, tbt_s=5.0)
    for name, prompt in (("a", 150), ("b", 150)):
        engine.arrive(name, prompt, 3, slo=loose)
    assert chunks(engine.next_plan()) == [("a", 64, True)]
    assert chunks(engine.next_plan()) == [("a", 64, False)]
    engine.arrive("short", 10, 3, slo=loose)
    third = chunks(engine.next_plan())
    assert third[0] == ("a", 22, False)
    assert ("short", 10, True) in third or third[1][0] == "b"
    assert [i for i, n, _ in chunks(engine.next_plan()) if n > 10] == ["b"]


def test_without_chunking_prompts_are_whole(fake_engine: Any) -> None:
    """Two prompts that do not fit a step together come one after the other."""
    engine = server(fake_engine, {"chunking": False}, max_step_tokens=64)
    for name in "ab":
        engine.arrive(name, 40, 3, slo=Slo(ttft_s=9.0, tbt_s=0.02))
    assert chunks(engine.next_plan()) == [("a", 40, True)]
    assert chunks(engine.next_plan()) == [("b", 40, True)]


# -- A2 ---------------------------------------------------------------------------------------


def request(slo: Slo, prompt: int = 100, arrived_at_s: float = 0.0) -> Request:
    return Request("r", slo, arrived_at_s, prompt, 50)


def test_time_left_online() -> None:
    """SLO less the wait less the steps still to come, each at its longest."""
    waiting = request(Slo(ttft_s=2.0, tbt_s=0.3))
    assert time_left_s(waiting.slo, waiting, 0.5, 0.1, 40.0, False) == (pytest.approx(1.2), 2.0)
    waiting.last_token_at_s = 4.0
    assert time_left_s(waiting.slo, waiting, 4.05, 0.1, 40.0, True) == (pytest.approx(0.15), 0.3)


def test_time_left_offline() -> None:
    """Ten seconds for one prompt step and nine tokens are one each; what came early is shared."""
    batch = request(Slo(jct_s=10.0), prompt=30)
    batch.predicted_output_tokens = 10
    assert time_left_s(batch.slo, batch, 0.0, 0.1, 40.0, False) == (pytest.approx(0.9), 1.0)
    batch.num_output_tokens, batch.last_token_at_s = 1, 0.1
    assert time_left_s(batch.slo, batch, 0.1, 0.1, 40.0, True) == (
        pytest.approx(1.0),
        pytest.approx(1.1),
    )


def test_nothing_promised_is_never_urgent() -> None:
    """No promise: no time is ever up, and no step is held to it."""
    free = request(NO_PROMISE)
    assert time_left_s(free.slo, free, 99.0, 0.1, 40.0, False) == (math.inf, math.inf)


def test_the_order_is_by_time_left(fake_engine: Any) -> None:
    """The tighter promise goes first though it came last; what is lost goes behind it."""
    engine = server(fake_engine, {"packing": False}, max_step_tokens=64)
    engine.arrive("loose", 60, 3, slo=Slo(ttft_s=9.0))
    engine.arrive("tight", 60, 3, slo=Slo(ttft_s=0.3))
    engine.arrive("hopeless", 60, 3, slo=Slo(ttft_s=0.001))
    order = [chunks(engine.next_plan())[0][0] for _ in range(3)]
    assert order == ["tight", "loose", "hopeless"]
    engine.drain(30)


def test_the_urgent_take_kv_from_who_can_wait_longest(fake_engine: Any) -> None:
    """The cache is full of two batch jobs: the one with more time gives way to a chat."""
    engine = server(fake_engine, num_blocks=26, max_step_tokens=64)
    engine.arrive("soon", 40, 30, slo=Slo(jct_s=20.0))
    engine.arrive("late", 40, 30, slo=Slo(jct_s=200.0))
    engine.next_plan()
    engine.next_plan()
    engine.arrive("chat", 40, 5, slo=Slo(ttft_s=0.15, tbt_s=0.2))
    preempted: list[str] = []
    for _ in range(4):
        preempted += [p.request_id for p in engine.next_plan().preempt]
    assert preempted == ["late"]
    engine.drain(300)


def test_streams_are_spared_unless_careless(fake_engine: Any) -> None:
    """A stream that has less time than its prompt takes could not come back: it stays."""
    for careful, expected in ((True, []), (False, ["stream"])):
        engine = server(
            fake_engine, {"careful": careful}, num_blocks=45, max_step_tokens=64,
            latency=flat(0.01, 0.002),
        )  # fmt: skip
        engine.arrive("stream", 150, 8, slo=Slo(ttft_s=5.0, tbt_s=0.4))
        for _ in range(3):
            engine.next_plan()
        engine.arrive("chat", 36, 2, slo=Slo(ttft_s=0.13, tbt_s=0.5))
        preempted: list[str] = []
        for _ in range(3):
            preempted += [p.request_id for p in engine.next_plan().preempt]
        assert preempted[:1] == expected
        engine.drain(100)


def test_a_loose_stream_sits_out_while_prompts_fill_the_step(fake_engine: Any) -> None:
    """It can wait for several steps, so a prompt that fills the step goes before it, until its
    own turn comes; its gap is kept."""
    engine = server(fake_engine, max_step_tokens=64)
    engine.arrive("stream", 8, 12, slo=Slo(ttft_s=1.0, tbt_s=0.4))
    engine.arrive("tight", 8, 12, slo=Slo(ttft_s=1.0, tbt_s=0.07))
    engine.next_plan()
    engine.arrive("long", 400, 2, slo=Slo(ttft_s=0.5))
    held = [engine.next_plan().hold for _ in range(6)]
    assert ("stream",) in held
    assert ("tight",) not in held
    engine.drain(100)
    lost = [r for r in engine.core.live.requests.values() if not r.has_claim]
    assert not lost


def test_who_waited_too_long_is_urgent(fake_engine: Any) -> None:
    """Without a promise one waits for those who have one, but not for ever."""
    engine = server(fake_engine, {"max_wait_s": 1.0}, max_step_tokens=64)
    engine.arrive("patient", 60, 2)
    first_s = None
    for i in range(60):
        engine.arrive(f"c{i}", 64, 1, slo=Slo(ttft_s=5.0))
        if any(c.request_id == "patient" for c in engine.next_plan().chunks):
            first_s = engine.now_s
            break
    assert first_s is not None
    assert 0.7 <= first_s <= 1.1


def test_a_late_prompt_goes_first_only_by_the_letter() -> None:
    """Time left below nothing sorts first; with late_last it sorts behind everybody."""

    late = Request("late", Slo(ttft_s=1.0), 0.0, 10, 5)
    late.standing = type(late.standing).LOST
    alive = Request("alive", Slo(ttft_s=9.0), 0.0, 10, 5)
    live = LiveRequests()
    for request in (late, alive):
        live.arrive(request)
    draft = draft_of(live, EngineView(100, 100, 16, 64, 512), 5.0, latency=flat())
    for late_last, first in ((True, "alive"), (False, "late")):
        tasks = ByTimeLeft(late_last).tasks(draft, 0.1, 40.0)
        assert tasks[0].request.request_id == first


# -- A3 ---------------------------------------------------------------------------------------


def test_the_nearest_demand_fills_the_step(fake_engine: Any) -> None:
    """Of prompts within gamma of the head the one that fills the step best goes first."""
    engine = server(fake_engine, max_step_tokens=64)
    loose = Slo(ttft_s=30.0)
    for name, prompt in (("head", 10), ("filler", 54), ("middle", 30)):
        engine.arrive(name, prompt, 2, slo=loose)
    # What is left then is filled exactly by a part of the middle one, nearest in KV too.
    assert chunks(engine.next_plan()) == [("filler", 54, True), ("middle", 10, True)]
    engine.drain(20)


def test_only_those_near_the_head_compete(fake_engine: Any) -> None:
    """With a small gamma the better filler is too far behind the head to be asked first."""
    engine = server(fake_engine, {"gamma_s": 0.1}, max_step_tokens=64)
    engine.arrive("head", 10, 2, slo=Slo(ttft_s=30.0))
    engine.arrive("filler", 60, 2, slo=Slo(ttft_s=31.0))
    assert chunks(engine.next_plan())[0][0] == "head"
    wide = server(fake_engine, {"gamma_s": 2.0}, max_step_tokens=64)
    wide.arrive("head", 10, 2, slo=Slo(ttft_s=30.0))
    wide.arrive("filler", 60, 2, slo=Slo(ttft_s=31.0))
    assert chunks(wide.next_plan())[0][0] == "filler"


def test_kv_counts_as_much_as_tokens(fake_engine: Any) -> None:
    """A prompt whose KV does not fit is passed over; nobody is admitted beyond the cache."""
    engine = server(fake_engine, num_blocks=12, max_step_tokens=64)
    engine.arrive("a", 30, 20, slo=Slo(ttft_s=30.0, tbt_s=1.0))
    engine.next_plan()
    engine.arrive("big", 24, 2, slo=Slo(ttft_s=30.0, tbt_s=1.0))
    engine.arrive("small", 8, 2, slo=Slo(ttft_s=30.0, tbt_s=1.0))
    assert [i for i, *_ in chunks(engine.next_plan())] == ["small"]
    engine.drain(100)
    assert engine.num_forced == 0
