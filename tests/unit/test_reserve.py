"""Proactive allocation, the global reserve, and who may draw on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from drafts import draft_of, regive

from headway.kit.lengths import MaxTokens, SlidingHistogram
from headway.kit.simple import Youngest
from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.c2_lending import LendingLedger
from headway.papers.cacheopt.c3_ahead import Proactive
from headway.papers.cacheopt.c4_victims import Buckets
from headway.papers.cacheopt.critical import Critical, Reserve
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request, Standing, State
from headway.slo import NO_PROMISE, Slo

SIZE = 16
TIGHT, LOOSE = Slo(ttft_s=9.0, tbt_s=0.06), Slo(ttft_s=9.0, tbt_s=1.0)


class Scene:
    """Running requests, free blocks, and the plan that is being made."""

    def __init__(self, num_free: int, num_total: int = 200, in_flight: int = 0) -> None:
        self.live, self.ledger = LiveRequests(), LendingLedger(LendingBook())
        view = EngineView(num_total, num_free, SIZE, 64, 512, in_flight)
        self.draft = draft_of(self.live, view, 10.0, max_step_s=0.1)
        self.reserve = Reserve()

    def decoding(
        self, name: str, num_tokens: int, slo: Slo = NO_PROMISE, output: int = 500
    ) -> Request:
        """Add a stream of *num_tokens* tokens, the newest without KV yet."""
        request = Request(name, slo, 9.0, num_tokens - 1, output)
        self.live.arrive(request)
        self.live.unqueue(request)
        request.move(State.RUNNING, 9.0, "started")
        self.live.start_prefill(request)
        request.num_computed_tokens = num_tokens - 1
        request.num_output_tokens = 1
        request.first_token_at_s = request.last_token_at_s = 10.0
        self.live.start_decode(request)
        self.ledger.enter(request, 0)
        return request

    def prompt(self, name: str, num_tokens: int, done: int) -> Request:
        request = Request(name, NO_PROMISE, 9.0, num_tokens, 50)
        self.live.arrive(request)
        self.live.unqueue(request)
        request.move(State.RUNNING, 9.0, "started")
        request.num_computed_tokens = done
        self.live.start_prefill(request)
        self.ledger.enter(request, 0)
        return request

    def fund(self, reserve: int = 0, ahead: int = 2, **given: Any) -> list[str]:
        funder = Proactive(self.ledger, Critical(), self.reserve, reserve, ahead)
        predictor = given.get("predictor", MaxTokens())
        plan = funder.fund(self.draft, predictor, given.get("preemptor", Youngest()))
        return [p.request_id for p in plan]


@pytest.mark.parametrize(
    ("num_tokens", "ahead", "spoken_for"),
    [
        (16, 1, 0),  # 15 with KV: the next fills the block.
        (17, 1, 1),  # 16 with KV: the next opens one.
        (16, 2, 1),
        (15, 2, 0),
        (15, 3, 1),
        (15, 19, 2),
    ],
)
def test_blocks_needed_within_the_look_ahead_are_spoken_for(
    num_tokens: int, ahead: int, spoken_for: int
) -> None:
    """Newcomers get what is left once the running have theirs, k steps ahead."""
    scene = Scene(num_free=50)
    scene.decoding("r", num_tokens)
    assert scene.fund(ahead=ahead) == []
    assert scene.draft.num_spare_blocks == 50 - spoken_for


def test_with_a_step_in_flight_one_more_token_counts() -> None:
    """Under asynchronous scheduling the token in flight has its KV already."""
    for in_flight, spoken_for in ((1, 0), (2, 1)):
        scene = Scene(num_free=50, in_flight=in_flight)
        scene.decoding("r", 15)
        scene.fund(ahead=1)
        assert scene.draft.num_spare_blocks == 50 - spoken_for


def test_a_request_near_its_bound_needs_no_more() -> None:
    """Nobody is given blocks for tokens it may not generate."""
    scene = Scene(num_free=50)
    scene.decoding("r", 16, output=2)
    scene.fund(ahead=10)
    assert scene.draft.num_spare_blocks == 50


def test_prompts_in_progress_are_paid_for_in_full() -> None:
    """They were admitted as a whole: 100 tokens, 30 done, 5 blocks to come."""
    scene = Scene(num_free=50)
    scene.prompt("p", 100, 30)
    scene.fund()
    assert scene.draft.num_spare_blocks == 45


def test_victims_leave_before_anybody_stalls() -> None:
    """Two blocks are needed within two steps and one is free: the youngest leaves now."""
    scene = Scene(num_free=1)
    scene.decoding("a", 16)
    scene.decoding("b", 16)
    scene.decoding("c", 40)
    assert scene.fund(ahead=1) == []
    assert scene.fund(ahead=2) == ["c"]
    assert scene.draft.num_spare_blocks == 1 + 3 - 2


def test_a_victim_needs_no_blocks() -> None:
    """What a victim would have needed is no longer asked for."""
    scene = Scene(num_free=1)
    for name in "abc":
        scene.decoding(name, 17)
    assert scene.fund() == ["c"]
    assert scene.draft.num_spare_blocks == 0


def test_the_last_one_running_is_never_a_victim() -> None:
    """Alone with too few blocks, it goes on: the engine ends it when it owns everything."""
    scene = Scene(num_free=0)
    scene.decoding("a", 17)
    assert scene.fund() == []


def test_only_the_critical_draw_on_the_reserve() -> None:
    """With 8 blocks free and 8 in reserve, a loose stream costs a victim and a tight one none."""
    for slo, victims in ((LOOSE, ["young"]), (TIGHT, [])):
        scene = Scene(num_free=8)
        scene.decoding("grows", 17, slo)
        scene.decoding("young", 30)
        assert scene.fund(reserve=8) == victims


def test_what_is_left_is_the_reserve_first() -> None:
    """Spare blocks are those beyond the reserve; the reserve is told apart."""
    scene = Scene(num_free=20)
    scene.decoding("a", 17, TIGHT)
    scene.fund(reserve=8)
    assert (scene.draft.num_spare_blocks, scene.reserve.num_blocks_left) == (11, 8)
    scene = Scene(num_free=6)
    scene.decoding("a", 17, TIGHT)
    scene.fund(reserve=8)
    assert (scene.draft.num_spare_blocks, scene.reserve.num_blocks_left) == (0, 5)


def test_nobody_running_leaves_everything_to_newcomers() -> None:
    """A reserve for the running is none when nobody runs."""
    scene = Scene(num_free=20, num_total=20)
    scene.fund(reserve=8)
    assert scene.draft.num_spare_blocks == 20


def test_an_estimate_is_extended_before_it_is_outgrown() -> None:
    """Two steps before its end it is predicted again, at least a block further."""
    for step in (6, 7, 8):
        scene = Scene(num_free=50)
        request = scene.decoding("r", 20)
        request.predicted_output_tokens = 10
        scene.ledger.enter(request, 0)
        request.num_output_tokens = 1 + step
        regive(scene.draft, step=step)
        scene.fund(predictor=SlidingHistogram(min_samples=1))
        if step == 8:  # Of its ten tokens the ninth is out: the step after next has none.
            assert request.predicted_output_tokens >= 9 + SIZE
            assert not scene.ledger.overdue(step + 2)
        else:
            assert request.predicted_output_tokens == 10


def test_the_book_knows_cache_and_reserve() -> None:
    """The lending book is told what the cache holds and what is set aside."""
    scene = Scene(num_free=100)
    scene.decoding("r", 17)
    scene.fund(reserve=8)
    book = scene.ledger.book
    assert (book.capacity_tokens, book.reserve_tokens) == (200 * SIZE, 8 * SIZE)


def test_a_tiny_cache_has_a_tiny_reserve() -> None:
    """The reserve never takes more than an eighth."""
    for num_total, expected in ((200, 8), (40, 5), (7, 0)):
        scene = Scene(num_free=num_total, num_total=num_total)
        scene.decoding("r", 40)
        scene.fund(reserve=8)
        assert scene.reserve.num_blocks_left == expected


def test_slack_is_due_time_less_the_work_still_to_do() -> None:
    """Waiting by its first token, streaming by its gap; nobody without a live promise.

    The step that the token comes out of is work still to do.
    """
    scene, critical = Scene(num_free=50), Critical()
    stream = scene.decoding("s", 20, TIGHT)
    step_s = scene.draft.given.latency.predict_s(scene.draft.shape)
    assert step_s > 0.01
    assert critical.slack_s(scene.draft, stream) == pytest.approx(0.06 - step_s)
    assert critical.holds(scene.draft, stream)
    assert not critical.holds(scene.draft, scene.decoding("l", 20, LOOSE))
    assert critical.slack_s(scene.draft, scene.decoding("n", 20)) == math.inf
    job = scene.decoding("j", 20, Slo(jct_s=5.0), output=41)
    assert critical.slack_s(scene.draft, job) == pytest.approx(
        9.0 + 5.0 - 40 * 0.05 - 10.0 - scene.draft.given.latency.predict_s(scene.draft.shape)
    )
    waits = Request("w", Slo(ttft_s=1.0), 9.5, 300, 10)
    waits.due_at_s = 10.5
    draft = scene.draft
    step_s = draft.given.latency.predict_s(draft.shape)
    prompt_s = draft.given.latency.predict_s(draft.shape.with_chunk(512, 0)) - step_s
    assert critical.slack_s(draft, waits) == pytest.approx(0.5 - step_s - 300 * prompt_s / 512)


def test_the_buckets_order_victims() -> None:
    """No promise, loose gap, much to come, little held, in this order; the overdue last."""
    scene = Scene(num_free=0)
    scene.decoding("tight", 20, TIGHT)
    scene.decoding("loose", 20, LOOSE)
    scene.decoding("none small", 20, output=200)
    scene.decoding("none big", 60, output=200)
    scene.decoding("none long", 90, output=400)
    order = [r.request_id for r in Buckets().for_running(scene.draft)]
    assert order == ["none long", "none small", "none big", "loose", "tight"]
    regive(scene.draft, max_wait_s=1.0)
    scene.live.requests["none long"].last_token_at_s = 9.0
    order = [r.request_id for r in Buckets().for_running(scene.draft)]
    assert order == ["none small", "none big", "loose", "tight", "none long"]


def test_a_guest_in_the_way_is_the_first_victim() -> None:
    """However tight its promise: it overstays in room that its owner needs now."""
    scene = Scene(num_free=0)
    scene.decoding("owner", 100, output=400)
    guest = scene.decoding("guest", 20, TIGHT, output=40)
    book = scene.ledger.book
    assert book["guest"].owner == "owner"
    assert next(Buckets(book).for_running(scene.draft)).request_id == "owner"
    guest.max_output_tokens = guest.predicted_output_tokens = 390
    scene.ledger.enter(guest, 0)
    order = [r.request_id for r in Buckets(book).for_running(scene.draft)]
    assert order == ["guest", "owner"]


def test_a_newcomer_is_paid_only_while_it_is_critical_and_on_time() -> None:
    """And only with whom that makes neither late nor critical; the lost keep their rank."""
    scene, critical = Scene(num_free=0), Critical()
    scene.decoding("loose", 20, LOOSE)
    scene.decoding("hurried job", 20, Slo(jct_s=1.4), output=5)
    scene.decoding("patient job", 30, Slo(jct_s=60.0), output=5)
    scene.decoding("none", 40)
    lost = scene.decoding("lost", 50, LOOSE)
    scene.live.change_standing(lost, Standing.LOST)
    for due_in_s, expected in ((-1.0, []), (0.09, ["none", "patient job"]), (5.0, [])):
        waits = Request("w", Slo(ttft_s=1.0), 9.5, 1, 10)
        waits.due_at_s = scene.draft.given.ref_s + due_in_s
        victims = [r.request_id for r in Buckets(critical=critical).for_claim(scene.draft, waits)]
        assert victims == expected
        assert list(Buckets().for_claim(scene.draft, waits)) == []
