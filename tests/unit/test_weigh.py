"""Admission weighed by what each error costs."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from drafts import draft_for, regive

from headway import registry
from headway.errors import UserError
from headway.policy.decide import Headway
from headway.policy.draft import Draft
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.preempt import BestEffortFirst
from headway.policy.scheduler import Scheduler
from headway.policy.swap_choice import AlwaysRecompute, Cheaper
from headway.policy.view import EngineView
from headway.policy.weigh import ExpectedLengths, Weighed
from headway.request import Request
from headway.slo import NO_PROMISE, Slo

STREAM = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
LONG = 400
"""Output tokens of every request served before: four late gaps are forgiven."""


def loaded(num_streams: int, prompt_tokens: int, so_far: int, length: int = LONG) -> Scheduler:
    """Return a core that knows outputs of *length* tokens and runs streams *so_far* into them."""
    core = registry.build("headway")
    now_s = 0.0
    for i in range(40):
        core.observe(Arrived(now_s, f"old{i}", now_s, 10, 4000, STREAM))
        core.observe(StepScheduled(now_s, {f"old{i}": 10}, {f"old{i}": 0}))
        core.observe(StepDone(now_s + 0.01, {f"old{i}": length + i % 7}))
        core.observe(Finished(now_s + 0.01, f"old{i}", "stopped"))
        now_s += 0.01
    for i in range(num_streams):
        core.observe(Arrived(now_s, f"r{i}", now_s, prompt_tokens, 4000, STREAM))
        core.observe(StepScheduled(now_s, {f"r{i}": prompt_tokens}, {f"r{i}": 0}))
        core.observe(StepDone(now_s + 0.01, {f"r{i}": 1}))
        now_s += 0.01
    for i in range(num_streams):
        core.live.requests[f"r{i}"].num_output_tokens = so_far
    return core


def weighed(core: Scheduler) -> Weighed:
    """Return a gate of the default policy, over the lengths that *core* has learned."""
    assert isinstance(core.planner, Headway)
    assert isinstance(core.known.lengths, ExpectedLengths)
    return Weighed(core.known.lengths, core.planner.chunker)


def context(core: Scheduler, capacity_blocks: int, slo: Slo) -> Draft:
    """Return a plan in which a newcomer of 100 prompt tokens asks to start."""
    core.observe(Arrived(2.0, "new", 2.0, 100, 4000, slo))
    held = sum(-(-r.num_prompt_tokens // 16) + 1 for r in core.live.running())
    view = EngineView(capacity_blocks, max(capacity_blocks - held, 0), 16, 256, 2048, 0)
    return draft_for(core, view, 2.0)


def opens(core: Scheduler, capacity_blocks: int, slo: Slo = STREAM) -> bool:
    """Return whether the weighing alone lets a newcomer in."""
    gate = weighed(core)
    draft = context(core, capacity_blocks, slo)
    return gate.fits(draft, core.live.requests["new"])


def test_an_empty_server_takes_anybody() -> None:
    """Whatever the lengths say: nobody else will end and make room."""
    assert opens(loaded(0, 100, 0), 1)


def test_room_for_all_takes_anybody() -> None:
    """With no overflow in sight nothing is weighed."""
    assert opens(loaded(5, 100, 10), 1000)
    assert opens(loaded(5, 100, 10), 1000, NO_PROMISE)


def test_streams_that_forgive_nothing_are_not_overbooked() -> None:
    """Short streams forgive no late gap: a newcomer that would cost one of them waits."""
    assert not opens(loaded(12, 100, 10, length=80), 100)


def test_streams_that_have_earned_a_gap_are() -> None:
    """The same pressure, from streams far enough to forgive a gap each."""
    assert opens(loaded(12, 100, 250), 290)


def test_a_plan_says_what_an_overbooking_buys() -> None:
    """Preemptions expected of a newcomer, and the promises both ways would cost."""
    core = loaded(12, 100, 250)
    draft = context(core, 290, STREAM)
    gate = weighed(core)
    assert gate.fits(draft, core.live.requests["new"])
    assert re.fullmatch(
        r"first token due: \d+\.\d preemptions are expected of it and cost \d\.\d\d promises,"
        r" waiting \d\.\d\d",
        draft.risks["new"],
    )
    roomy = context(loaded(5, 100, 10), 1000, STREAM)
    gate.fits(roomy, roomy.given.live.requests["new"])
    assert not roomy.risks


def test_best_effort_may_cost_next_to_no_preemption() -> None:
    """Nobody waits for its promise, so it starts where even claims would be let in unweighed."""
    assert not opens(loaded(12, 100, 250), 290, NO_PROMISE)


@pytest.mark.parametrize(
    ("num_preemptions", "num_spare", "may"),
    [(0, 70, True), (1, 699, False), (1, 700, True), (2, 1299, False), (2, 1300, True),
     (9, 1900, True)],
)  # fmt: skip
def test_best_effort_comes_back_to_room_for_claims_too(
    num_preemptions: int, num_spare: int, may: bool
) -> None:
    """Preempted n times, it leaves room for 2^n claims of 300 tokens; an empty cache suffices."""
    core = loaded(1, 100, 10)
    draft = context(core, 2000, NO_PROMISE)
    regive(draft, view=replace(draft.given.view, block_size_tokens=1), claim_tokens=300.0)
    draft.num_spare_blocks = num_spare
    new = core.live.requests["new"]
    assert new.num_tokens == 100
    new.num_preemptions = num_preemptions
    assert Weighed._may_come_back(draft, new) is may


def test_what_was_let_in_counts_for_the_next() -> None:
    """A burst is not admitted against one and the same forecast."""
    core = loaded(6, 100, 10, length=80)
    gate = weighed(core)
    draft = context(core, 110, STREAM)
    new = core.live.requests["new"]
    answers = []
    for _ in range(6):
        answers.append(gate.fits(draft, new))
        gate.admitted(draft, new)
    assert answers[0]
    assert not answers[-1]
    assert answers == sorted(answers, reverse=True)


def test_whoever_has_earned_a_late_gap_is_preempted_first() -> None:
    """Among claims: the tokens it has shown, then those predicted, then the youngest."""
    core = loaded(3, 100, 50)
    core.live.requests["r0"].num_output_tokens = 150
    draft = context(core, 1000, STREAM)
    order = [r.request_id for r in BestEffortFirst().for_running(draft)]
    assert order == ["r0", "r2", "r1"]
    core.live.requests["r0"].num_late_gaps = 1
    core.live.requests["r2"].num_late_gaps = 99
    order = [r.request_id for r in BestEffortFirst().for_running(draft)]
    assert order[-1] == "r2", "it has been late too often already"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"swap": "never"}, "Option swap must be one of cheaper, recompute, always, not 'never'"),
    ],
)
def test_a_wrong_option_gets_one_sentence(options: dict[str, object], message: str) -> None:
    """Named, with what is allowed."""
    with pytest.raises(UserError, match=message):
        registry.build("headway", options=options)


def test_slack_reckons_with_one_quantile_and_never_swaps() -> None:
    """What it was before lengths were weighed; the rest of the default's options are its own."""
    slack = registry.build("slack", options={"max_wait_s": 7.0})
    assert slack.known.max_wait_s == 7.0
    assert slack.known.lengths.coverage_target == 0.5
    assert isinstance(slack.planner.swap, AlwaysRecompute)
    assert isinstance(registry.build("headway").planner.swap, Cheaper)
    surer = registry.build("slack", options={"confidence": 0.9, "swap": "cheaper"})
    assert surer.known.lengths.coverage_target == 0.9
    assert isinstance(surer.planner.swap, Cheaper)


def test_whoever_waited_too_long_is_let_in() -> None:
    """Starting it may cost promises; letting it starve is worse."""
    core = loaded(12, 100, 10, length=80)
    draft = context(core, 100, NO_PROMISE)
    gate = weighed(core)
    assert not gate.fits(draft, core.live.requests["new"])
    regive(draft, max_wait_s=0.0)
    assert gate.fits(draft, core.live.requests["new"])


def test_cut_outputs_count_as_at_least_so_long() -> None:
    """Who hung up at 50 or met its bound there says nothing against lengths of 100."""

    def ended(num_tokens: int, bound: int = 4000) -> Request:
        request = Request("r", STREAM, 0.0, 10, bound)
        request.num_output_tokens = num_tokens
        return request

    whole, cut = ExpectedLengths(), ExpectedLengths()
    for _ in range(30):
        whole.learn(ended(100))
        cut.learn(ended(100))
        cut.learn(ended(50, bound=50))
        cut.learn_cut(ended(50))
    assert whole.predict(ended(0)) == pytest.approx(cut.predict(ended(0)), rel=0.05)
    assert whole.predict(ended(0)) > 60
