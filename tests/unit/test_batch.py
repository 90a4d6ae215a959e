"""Filling a step: order, KV, victims, and the one cap an engine knows."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest
from drafts import draft_of, regive

from headway.kit.curve_gate import CurveGate
from headway.kit.ledger import KvLedger
from headway.kit.simple import FixedChunk, FreeBlocks, Youngest
from headway.latency.fixed import FixedModel
from headway.policy.admit import claim_work, prefill_time
from headway.policy.batch import InOrder, StepFill
from headway.policy.chunk import SlackChunk
from headway.policy.live_requests import LiveRequests
from headway.policy.preempt import BestEffortFirst
from headway.policy.prioritize import ByDeadline
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")


class Scene:
    """A table of requests and the context of one plan over it."""

    def __init__(self, num_blocks: int = 100, max_running: int = 8, max_step: int = 64) -> None:
        self.live, self.ledger = LiveRequests(), KvLedger()
        view = EngineView(num_blocks, num_blocks, 16, max_running, max_step)
        self.draft = draft_of(self.live, view, 100.0, num_spare_blocks=num_blocks)

    def waiting(self, name: str, prompt: int, slo: Slo = CHAT, at_s: float = 99.9) -> Request:
        request = Request(name, slo, at_s, prompt, 20)
        request.due_at_s = at_s + (slo.ttft_s or math.inf)
        self.live.arrive(request)
        return request

    def prefilling(self, name: str, prompt: int, done: int, slo: Slo = CHAT) -> Request:
        request = self.waiting(name, prompt, slo)
        self.live.unqueue(request)
        request.num_computed_tokens = done
        request.move(State.RUNNING, 99.9, "started")
        self.live.start_prefill(request)
        self.ledger.enter(request, 0)
        return request

    def decoding(self, name: str, prompt: int, output: int, slo: Slo = NO_PROMISE) -> Request:
        request = self.prefilling(name, prompt, prompt, slo)
        request.num_output_tokens = output
        request.first_token_at_s = request.last_token_at_s = 99.95
        self.live.start_decode(request)
        return request

    def fill(
        self,
        order: Iterable[Request],
        budget: int | None = None,
        may_pass: int = 8,
        curve: bool = False,
        polite: bool = False,
    ) -> StepFill:
        gate = CurveGate(self.ledger) if curve else FreeBlocks()
        preemptor = BestEffortFirst() if polite else Youngest()
        return InOrder(may_pass).fill(self.draft, order, FixedChunk(budget), gate, preemptor)


def chunks_of(filled: StepFill) -> list[tuple[str, int, bool]]:
    return [(c.request_id, c.num_tokens, c.admit) for c in filled.chunks]


def test_candidates_are_taken_in_order_until_the_budget_is_spent() -> None:
    """The last one taken is cut short; the shape counts what was taken."""
    scene = Scene()
    order = [scene.waiting(f"r{i}", 30) for i in range(4)]
    filled = scene.fill(order, budget=64)
    assert chunks_of(filled) == [("r0", 30, True), ("r1", 30, True), ("r2", 4, True)]
    assert filled.shape.num_prefill_tokens == 64
    assert filled.shape.num_prefills == 3
    assert filled.chunk_cap_tokens == 0


def test_a_step_ends_while_the_first_token_it_brings_is_on_time() -> None:
    """The rest of a prompt due in 50 ms goes alone; where it is late anyway the step is filled."""
    for due_in_s, others in ((0.05, False), (0.5, True), (0.001, True)):
        scene = Scene(num_blocks=1000, max_step=4096)
        regive(scene.draft, latency=FixedModel((0.005, 0.0, 2e-5, 0.0, 0.0, 0.0, 0.0)))
        last = scene.prefilling("last", 2000, 1500)
        last.due_at_s = scene.draft.given.ref_s + due_in_s
        order = [last, scene.waiting("next", 3000)]
        filled = InOrder().fill(scene.draft, order, SlackChunk(), FreeBlocks(), Youngest())
        assert chunks_of(filled)[0] == ("last", 500, False)
        assert (filled.shape.num_prefill_tokens == 3500) == others
        if not others:
            took_s = scene.draft.given.latency.predict_s(filled.shape)
            assert took_s == pytest.approx(due_in_s, abs=4e-5)  # Two tokens.


def test_the_engine_runs_only_so_many() -> None:
    """No more are admitted than the engine can run at once."""
    scene = Scene(max_running=3)
    running = scene.prefilling("old", 30, 10)
    order = [running, *(scene.waiting(f"r{i}", 5) for i in range(4))]
    filled = scene.fill(order)
    assert [c.request_id for c in filled.chunks] == ["old", "r0", "r1"]


def test_a_prompt_that_lacks_kv_is_passed_by_a_smaller_one() -> None:
    """With passing allowed the small one goes first; without, the queue stops."""
    scene = Scene(num_blocks=4)
    order = [scene.waiting("big", 100), scene.waiting("small", 20)]
    assert chunks_of(scene.fill(order)) == [("small", 20, True)]
    scene = Scene(num_blocks=4)
    order = [scene.waiting("big", 100), scene.waiting("small", 20)]
    assert chunks_of(scene.fill(order, may_pass=0)) == []


def test_spare_blocks_shrink_with_every_admission() -> None:
    """What one was given the next cannot have."""
    scene = Scene(num_blocks=4)
    order = [scene.waiting(f"r{i}", 30) for i in range(3)]
    filled = scene.fill(order)
    assert [c.request_id for c in filled.chunks] == ["r0", "r1"]
    assert scene.draft.num_spare_blocks == 0


def test_a_claim_takes_the_kv_of_best_effort() -> None:
    """Victims are preempted for a claim, as few as suffice, and never computed too."""
    scene = Scene(num_blocks=20)
    for i in range(3):
        scene.decoding(f"bulk{i}", 90, 5)
    scene.draft.num_spare_blocks = 2
    filled = scene.fill([scene.waiting("chat", 60)], polite=True)
    assert chunks_of(filled) == [("chat", 60, True)]
    assert [p.request_id for p in filled.preempt] == ["bulk2"]


def test_best_effort_preempts_nobody() -> None:
    """Who has no live promise waits for KV to come free."""
    scene = Scene(num_blocks=20)
    scene.decoding("bulk", 90, 5)
    scene.draft.num_spare_blocks = 2
    filled = scene.fill([scene.waiting("more", 60, NO_PROMISE)], polite=True)
    assert not filled.chunks
    assert not filled.preempt


def test_nobody_is_preempted_in_vain() -> None:
    """When even all victims together would not suffice, none is taken."""
    scene = Scene(num_blocks=20)
    scene.decoding("bulk", 30, 5)
    scene.draft.num_spare_blocks = 1
    filled = scene.fill([scene.waiting("chat", 200)], polite=True)
    assert not filled.chunks
    assert not filled.preempt


def test_a_claim_does_not_preempt_a_claim() -> None:
    """A promise alive is not broken to keep another."""
    scene = Scene(num_blocks=20)
    scene.decoding("first", 90, 5, CHAT)
    scene.draft.num_spare_blocks = 2
    filled = scene.fill([scene.waiting("second", 60)], polite=True)
    assert not filled.preempt


def test_a_victim_is_not_computed_afterwards() -> None:
    """A prompt in progress whose KV was given away gets no chunk in the same step."""
    scene = Scene(num_blocks=20, max_step=256)
    bulk = scene.prefilling("bulk", 90, 40, NO_PROMISE)
    scene.draft.num_spare_blocks = 2
    filled = scene.fill([scene.waiting("chat", 60), bulk], polite=True)
    assert [p.request_id for p in filled.preempt] == ["bulk"]
    assert chunks_of(filled) == [("chat", 60, True)]


def test_a_cut_prompt_in_progress_is_held_by_the_cap() -> None:
    """When the one cut short runs already, the cap for everybody is its chunk."""
    scene = Scene()
    long = scene.prefilling("long", 500, 100)
    filled = scene.fill([scene.waiting("chat", 20), long], budget=64)
    assert chunks_of(filled) == [("chat", 20, True), ("long", 44, False)]
    assert filled.chunk_cap_tokens == 44


def test_a_cut_prompt_smaller_than_the_others_sits_out() -> None:
    """A cap below another chunk would cut that one too: the cut one waits a step."""
    scene = Scene()
    long = scene.prefilling("long", 500, 100)
    filled = scene.fill([scene.waiting("chat", 50), long], budget=64)
    assert chunks_of(filled) == [("chat", 50, True)]
    assert filled.chunk_cap_tokens == 0
    assert filled.shape.num_prefill_tokens == 50
    assert filled.shape.chunk_context == pytest.approx(50 * 25)


def test_a_lone_prompt_in_progress_needs_no_cap() -> None:
    """The budget alone holds it."""
    scene = Scene()
    filled = scene.fill([scene.prefilling("long", 500, 100)], budget=64)
    assert chunks_of(filled) == [("long", 64, False)]
    assert filled.chunk_cap_tokens == 0


def test_the_curve_keeps_a_request_out_that_would_burst_the_future() -> None:
    """Free blocks now are not enough when everyone's predicted growth fills the cache."""
    scene = Scene(num_blocks=20)
    resident = scene.decoding("resident", 100, 1)
    resident.predicted_output_tokens = 150
    scene.ledger.enter(resident, 0)
    newcomer = scene.waiting("newcomer", 100, NO_PROMISE)
    newcomer.predicted_output_tokens = 100
    assert not scene.fill([newcomer], curve=True).chunks
    newcomer.predicted_output_tokens = 5
    assert chunks_of(scene.fill([newcomer], curve=True)) == [("newcomer", 64, True)]


def test_a_blocked_overdue_request_does_not_stop_prompts_in_progress() -> None:
    """Waiting for KV it bars other waiting ones, but not those whose end will free KV."""
    scene = Scene(num_blocks=20)
    regive(scene.draft, max_wait_s=10.0)
    late = scene.waiting("late", 280, NO_PROMISE, at_s=50.0)
    going = scene.prefilling("going", 60, 20)
    newcomer = scene.waiting("newcomer", 10, NO_PROMISE)
    scene.draft.num_spare_blocks = 15
    filled = scene.fill([late, going, newcomer], curve=True, polite=True)
    assert chunks_of(filled) == [("going", 40, False)]


def test_of_the_overdue_the_longest_silent_goes_first() -> None:
    """A stream that stands still came early but had a token since; all go before promises."""
    scene = Scene()
    regive(scene.draft, max_wait_s=10.0)
    stream = scene.waiting("stream", 50, NO_PROMISE, at_s=10.0)
    stream.last_token_at_s, stream.num_preemptions = 91.0, 1
    scene.waiting("claim", 50, CHAT)
    scene.waiting("silent", 50, NO_PROMISE, at_s=20.0)
    scene.waiting("patient", 50, NO_PROMISE, at_s=93.0)
    order = [request.request_id for request in ByDeadline().candidates(scene.draft)]
    assert order == ["silent", "stream", "claim", "patient"]


def asking(scene: Scene, name: str, prompt: int, common: int, found: int = 0) -> Request:
    """Let a claim wait whose prompt begins as that of "doc" does."""
    request = scene.waiting(name, prompt)
    request.computed_by, request.num_common_tokens, request.num_found_tokens = "doc", common, found
    return request


def test_a_claim_gives_its_turn_to_who_computes_its_prompt() -> None:
    """Best effort goes first where a claim will find in the cache what it computes."""
    scene = Scene()
    scene.waiting("sooner", 50, at_s=99.8)
    doc = scene.prefilling("doc", 500, 200, NO_PROMISE)
    asking(scene, "ask", 480, 464, found=192)
    scene.waiting("bulk", 50, NO_PROMISE)

    def order() -> list[str]:
        return [request.request_id for request in ByDeadline().candidates(scene.draft)]

    assert order() == ["sooner", "doc", "ask", "bulk"]
    doc.num_computed_tokens = 464  # Nothing is left that both need.
    assert order() == ["sooner", "ask", "doc", "bulk"]


def test_nobody_waits_for_one_that_is_behind() -> None:
    """Not where more is in the cache than the other has, nor where the other does not run."""
    scene = Scene()
    doc = scene.prefilling("doc", 500, 200, NO_PROMISE)
    ask = asking(scene, "ask", 480, 464, found=300)
    assert scene.live.computing_for(ask) is None
    ask.num_found_tokens = 192
    assert scene.live.computing_for(ask) is doc
    scene.live.stop_running(doc)
    assert scene.live.computing_for(ask) is None


def test_who_comes_after_in_the_same_step_computes_the_rest() -> None:
    """And needs blocks for the rest only; of a prompt that is cut nobody has anything yet."""
    scene = Scene(num_blocks=40, max_step=200)
    doc = scene.prefilling("doc", 500, 400, NO_PROMISE)
    asks = [asking(scene, f"ask{i}", 480, 464) for i in range(2)]
    scene.draft.num_spare_blocks = 3
    filled = scene.fill([doc, *asks])
    assert chunks_of(filled) == [("doc", 100, False), ("ask0", 16, True), ("ask1", 16, True)]
    assert scene.draft.num_spare_blocks == 1
    assert chunks_of(scene.fill([doc, *asks], budget=99)) == [("doc", 99, False)]


@pytest.mark.parametrize(("slo", "num_paying"), [(NO_PROMISE, 1), (CHAT, 0), (Slo(ttft_s=2.0), 1)])
def test_what_claims_share_is_counted_once(slo: Slo, num_paying: int) -> None:
    """For the prompt in progress if that is a claim due before, else for the first who needs it."""
    scene = Scene()
    scene.prefilling("doc", 500, 200, slo)
    for i in range(3):
        asking(scene, f"ask{i}", 480, 464, found=192)
    assert scene.live.shared_tokens() == {f"ask{i}": 464 for i in range(num_paying, 3)}
    chunker = FixedChunk(64)
    prefill = prefill_time(scene.draft, chunker)
    jobs = claim_work(scene.draft.given, prefill)
    work_s = {job.key: job.work_s for job in jobs}
    asks = [scene.live.requests[f"ask{i}"] for i in range(3)]
    whole = [prefill.work_s(ask, 192 if i < num_paying else 464) for i, ask in enumerate(asks)]
    assert [work_s[ask.request_id] for ask in asks] == whole
