"""Which promises can be kept together, and who fits the cache."""

from __future__ import annotations

import pytest
from drafts import draft_of

from headway.kit.simple import FixedChunk
from headway.latency.fixed import FixedModel
from headway.latency.model import StepShape
from headway.policy.admit import DueWork, MooreHodgson, largest_feasible, prefill_time
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import Slo

H100 = FixedModel((0.007, 0.001, 2e-5, 5e-5, 2e-8, 1e-9, 1e-4))
"""About what an 8B model takes: a prompt of 40,000 tokens spends half its time on attention."""


def context(*claims: Request) -> Draft:
    """Four streams run, *claims* wait."""
    live = LiveRequests()
    for request in claims:
        live.arrive(request)
    view = EngineView(30_000, 30_000, 16, 256, 8192)
    return draft_of(live, view, step=1, latency=H100, shape=StepShape(0, 0, 4, 8_000))


def claim(name: str, num_prompt_tokens: int, ttft_s: float, num_found_tokens: int = 0) -> Request:
    """A request that waits; *num_found_tokens* of its prompt are cached."""
    request = Request(name, Slo(ttft_s=ttft_s), 0.0, num_prompt_tokens, 10)
    request.due_at_s = ttft_s
    request.num_found_tokens = num_found_tokens
    return request


@pytest.mark.parametrize("found", [0, 2048, 30_720])
@pytest.mark.parametrize("num_steps", [1, 3, 15])
def test_the_work_of_a_prompt_is_what_its_steps_take(num_steps: int, found: int) -> None:
    """However long it is and whatever is cached: the sum over steps of one size."""
    request = claim("a", found + num_steps * 2048, 10.0, found)
    draft = context(request)
    steps_s = [
        H100.predict_s(draft.shape.with_chunk(2048, found + i * 2048)) for i in range(num_steps)
    ]
    assert prefill_time(draft, FixedChunk()).work_s(request) == pytest.approx(sum(steps_s))


def test_prompts_too_long_together_are_not_both_kept() -> None:
    """Their own attention counts: without it two prompts of 40,000 tokens would seem to fit 3 s."""
    both = claim("a", 40_000, 3.0), claim("b", 40_000, 3.0)
    dropped, pressure = MooreHodgson().set_aside(context(*both), FixedChunk())
    assert len(dropped) == 1
    assert pressure == 1.0
    patient = claim("a", 40_000, 3.0), claim("b", 40_000, 4.5)
    assert MooreHodgson().set_aside(context(*patient), FixedChunk())[0] == set()


def test_what_fits_is_kept_whole() -> None:
    """Nothing is set aside when all end on time; the pressure says how tight it is."""
    dropped, pressure = largest_feasible([DueWork("a", 4.0, 1.0), DueWork("b", 10.0, 4.0)])
    assert dropped == set()
    assert pressure == 0.5


def test_the_longest_job_goes_first() -> None:
    """One long job is dropped to save two short ones."""
    jobs = [DueWork("long", 10.0, 9.0), DueWork("a", 10.0, 2.0), DueWork("b", 10.0, 3.0)]
    assert largest_feasible(jobs) == ({"long"}, 1.0)


def test_a_heavy_job_outlives_light_ones() -> None:
    """Weight divides the work that decides who goes."""
    jobs = [
        DueWork("gold", 10.0, 9.0, weight=100.0),
        DueWork("a", 10.0, 2.0),
        DueWork("b", 10.0, 3.0),
    ]
    assert largest_feasible(jobs)[0] == {"a", "b"}


def test_an_overdue_job_drops_nobody_else() -> None:
    """A job whose instant has passed is set aside itself; the others keep their places."""
    jobs = [DueWork("late", -1.0, 0.5), DueWork("a", 5.0, 1.0), DueWork("b", 6.0, 1.0)]
    assert largest_feasible(jobs)[0] == {"late"}


def test_nobody() -> None:
    """No jobs, no pressure."""
    assert largest_feasible([]) == (set(), 0.0)


def test_ties_are_broken_the_same_way_every_time() -> None:
    """Equal jobs are dropped by key, whatever order they come in."""
    jobs = [DueWork(f"j{i}", 3.0, 1.0) for i in range(6)]
    one, _ = largest_feasible(jobs)
    two, _ = largest_feasible(reversed(jobs))
    assert one == two
    assert len(one) == 3
