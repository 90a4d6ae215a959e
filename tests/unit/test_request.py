"""States, sizes and story of a request."""

from __future__ import annotations

import itertools

import pytest

from headway.errors import InvariantError
from headway.request import MOVES, STORY_LINES, Request, Standing, State
from headway.slo import NO_PROMISE, Slo


def a_request(slo: Slo = NO_PROMISE) -> Request:
    return Request("r1", slo, 10.0, 50, 100)


@pytest.mark.parametrize(("start", "to"), list(itertools.product(State, State)))
def test_only_listed_moves_are_possible(start: State, to: State) -> None:
    """Any other move raises and tells the request's story."""
    request = a_request()
    request.state = start
    if to in MOVES[start]:
        request.move(to, 11.0, "because")
        assert request.state is to
        assert request.story[-1] == (11.0, "because")
    else:
        with pytest.raises(InvariantError, match=r"r1 cannot go .* arrived"):
            request.move(to, 11.0, "because")
        assert request.state is start


def test_a_story_stays_short_and_keeps_its_beginning() -> None:
    """However much happens, the first line and the latest ones are kept."""
    request = a_request()
    for i in range(200):
        request.note(10.0 + i, f"line {i}")
    assert len(request.story) == STORY_LINES
    assert request.story[0] == (10.0, "arrived")
    assert request.story[-1] == (209.0, "line 199")
    assert request.tell().startswith("+0.000s arrived; ")


def test_kv_held_in_each_state() -> None:
    """Nothing while waiting, what was computed while prefilling, all tokens afterwards."""
    request = a_request()
    assert request.kv_tokens == 0
    request.move(State.RUNNING, 11.0, "started")
    request.num_computed_tokens = 20
    assert request.kv_tokens == 20
    assert request.remaining_prefill_tokens == 30
    request.num_computed_tokens = 50
    request.num_output_tokens = 7
    assert request.kv_tokens == request.num_tokens == 57
    assert request.remaining_prefill_tokens == 0
    request.move(State.PREEMPTED, 12.0, "preempted")
    assert request.kv_tokens == 0


def test_standing_follows_the_promise() -> None:
    """Only who was promised something has a claim, until it is lost."""
    assert a_request().standing is Standing.UNPROMISED
    for slo in (Slo(ttft_s=1.0), Slo(tbt_s=1.0), Slo(jct_s=1.0)):
        request = a_request(slo)
        assert request.has_claim
        request.standing = Standing.LOST
        assert not request.has_claim


@pytest.mark.parametrize(("output", "allowed"), [(1, 0), (100, 0), (101, 1), (200, 1), (301, 3)])
def test_one_gap_in_a_hundred_may_be_late(output: int, allowed: int) -> None:
    """The allowance is 1 % of the gaps of the predicted output, rounded down."""
    request = a_request(Slo(tbt_s=0.1))
    request.predicted_output_tokens = output
    assert request.late_gaps_allowed() == allowed


def test_who_ran_longer_than_predicted_has_more_gaps() -> None:
    """The allowance never counts fewer gaps than there were."""
    request = a_request(Slo(tbt_s=0.1))
    request.predicted_output_tokens = 5
    request.num_output_tokens = 401
    assert request.late_gaps_allowed() == 4
