"""Sessions: calls after one another, each with all that was said, at the rate asked for."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest

from headway.errors import UserError
from headway.workloads import named, sessions
from headway.workloads.arrivals import Arrivals
from headway.workloads.prefixes import found_tokens
from headway.workloads.schema import WorkloadRequest

POISSON = Arrivals("poisson")
PROCESSES = ["poisson", "gamma:3", "onoff:10:30", "diurnal:60:0.8"]


def by_session(made: list[WorkloadRequest]) -> dict[str, list[WorkloadRequest]]:
    found: dict[str, list[WorkloadRequest]] = defaultdict(list)
    for request in made:
        found[request.id.partition("-")[0]].append(request)
    return found


@pytest.mark.parametrize("arrivals", PROCESSES)
@pytest.mark.parametrize(("count", "rate_rps"), [(1, 3.0), (300, 0.5), (400, 40.0)])
@pytest.mark.parametrize("name", sessions.KINDS)
def test_the_rate_is_the_mean_rate_of_calls(
    name: str, count: int, rate_rps: float, arrivals: str
) -> None:
    """So many requests in exactly that time, whatever the process and however long sessions are."""
    made = named.make(name, count, rate_rps, 3, Arrivals.parse(arrivals))
    assert len(made) == count
    assert made[-1].arrived_at_s == pytest.approx(count / rate_rps, rel=1e-6)
    times_s = [request.arrived_at_s for request in made]
    assert times_s == sorted(times_s)
    assert times_s[0] >= 0.0


@pytest.mark.parametrize("name", sessions.KINDS)
def test_a_call_begins_with_all_of_the_call_before(name: str) -> None:
    """Its chain goes on where the last one ended, and leaves room for the answer and the new."""
    kind = sessions.KINDS[name]
    for session in by_session(named.make(name, 600, 3.0, 0)).values():
        assert [r.id.partition("-")[2] for r in session] == [str(i) for i in range(len(session))]
        assert session[0].slo_class == kind.first_class
        assert {r.slo_class for r in session[1:]} <= {kind.slo_class}
        assert max(r.num_prompt_tokens for r in session) <= kind.longest_tokens
        for one, after in pairwise(session):
            grown = one.num_prompt_tokens + one.num_output_tokens
            assert after.num_prompt_tokens > grown
            assert after.hash_ids[: len(one.hash_ids)] == one.hash_ids
            assert len(after.hash_ids) == after.num_prompt_tokens // 16
            least_s = sessions.FIRST_TOKEN_S + sessions.TOKEN_S * one.num_output_tokens
            assert after.arrived_at_s - one.arrived_at_s >= least_s - 1e-5


@pytest.mark.parametrize("name", sessions.KINDS)
def test_sessions_share_their_heads_and_nothing_else(name: str) -> None:
    """A first call finds a head that was there before, in whole ids; no two sessions meet later."""
    made = named.make(name, 400, 2.0, 1)
    heads = {tokens // 16 * 16 for tokens in sessions.KINDS[name].heads}
    firsts = [
        found
        for request, found in zip(made, found_tokens(made), strict=True)
        if request.id.endswith("-0")
    ]
    assert set(firsts) == heads | {0}
    assert firsts.count(0) == len(heads)


def test_the_rate_moves_the_starts_and_not_the_pauses() -> None:
    """At thrice the rate sessions are the same, as far as they come, and begin thrice as soon."""
    slow, fast = (by_session(named.make("turns", 400, rate, 2)) for rate in (1.0, 3.0))
    assert len(fast) > len(slow)
    for name, session in slow.items():
        for one, other in zip(session, fast[name], strict=False):
            assert one.num_prompt_tokens == other.num_prompt_tokens
            assert one.hash_ids == other.hash_ids
            assert one.arrived_at_s - session[0].arrived_at_s == pytest.approx(
                other.arrived_at_s - fast[name][0].arrived_at_s, abs=3e-6
            )
    ratios = {round(slow[n][0].arrived_at_s / fast[n][0].arrived_at_s, 3) for n in slow}
    assert max(ratios) == pytest.approx(min(ratios), rel=0.01)
    assert min(ratios) > 2.5


def test_in_a_long_run_sessions_begin_as_often_as_their_calls_allow() -> None:
    """Session starts per second are the rate over the mean calls of a session, within 10 %."""
    made = named.make("agents", 6_000, 4.0, 5)
    found = list(by_session(made).values())
    whole = [len(calls) for calls in found if calls[0].arrived_at_s < 1_200.0]
    starts_s = [calls[0].arrived_at_s for calls in found]
    assert len(found) / 1_500.0 == pytest.approx(4.0 / np.mean(whole), rel=0.1)
    gaps_s = np.diff([0.0, *starts_s])
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize(("name", "least", "most"), [("turns", 0.85, 0.9), ("agents", 0.97, 0.99)])
def test_follow_up_calls_find_what_the_summary_says(name: str, least: float, most: float) -> None:
    """88 % of the prompt tokens of turns, 98 % of those of an agent's follow-up calls."""
    made = named.make(name, 2_000, 4.0, 0)
    pairs = [
        (found, request.num_prompt_tokens)
        for request, found in zip(made, found_tokens(made), strict=True)
        if name == "turns" or not request.id.endswith("-0")
    ]
    assert least <= sum(f for f, _ in pairs) / sum(p for _, p in pairs) <= most


def test_how_far_starts_are_stretched_by_hand() -> None:
    """At 2 s and 4 s three calls of five come within 4 s; with no session long enough, none do."""
    one, other = (sessions.Session(np.arange(n) * 2.0, np.ones(n), np.ones(n), 0) for n in (3, 2))
    starts_s = np.array([1.0, 2.0])
    assert sessions._stretch(starts_s, [one, other], 3, 4.0) == 2.0
    assert sessions._stretch(starts_s, [one, other], 4, 4.0) == 1.0
    assert sessions._stretch(starts_s, [one, other], 6, 4.0) == 0.0


def test_the_first_requests_are_these() -> None:
    """Exact values, so that a change of the generator is seen."""
    made = named.make("agents", 3, 0.5, 0)
    assert [(r.id, r.arrived_at_s, r.num_prompt_tokens, r.num_output_tokens) for r in made] == [
        ("s0-0", 1.252716, 13_430, 30),
        ("s1-0", 4.212542, 8_395, 78),
        ("s0-1", 6.0, 13_650, 32),
    ]


def test_no_request_is_no_workload() -> None:
    """As with the other named workloads."""
    with pytest.raises(UserError, match="at least one request"):
        named.make("turns", 0, 1.0, 0)
