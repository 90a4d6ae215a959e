"""Which promises can be kept together, and who fits the cache."""

from __future__ import annotations

from headway.policy.admit import Job, largest_feasible


def test_what_fits_is_kept_whole() -> None:
    """Nothing is set aside when all end on time; the pressure says how tight it is."""
    dropped, pressure = largest_feasible([Job("a", 4.0, 1.0), Job("b", 10.0, 4.0)])
    assert dropped == set()
    assert pressure == 0.5


def test_the_longest_job_goes_first() -> None:
    """One long job is dropped to save two short ones."""
    jobs = [Job("long", 10.0, 9.0), Job("a", 10.0, 2.0), Job("b", 10.0, 3.0)]
    assert largest_feasible(jobs) == ({"long"}, 1.0)


def test_a_heavy_job_outlives_light_ones() -> None:
    """Weight divides the work that decides who goes."""
    jobs = [Job("gold", 10.0, 9.0, weight=100.0), Job("a", 10.0, 2.0), Job("b", 10.0, 3.0)]
    assert largest_feasible(jobs)[0] == {"a", "b"}


def test_an_overdue_job_drops_nobody_else() -> None:
    """A job whose instant has passed is set aside itself; the others keep their places."""
    jobs = [Job("late", -1.0, 0.5), Job("a", 5.0, 1.0), Job("b", 6.0, 1.0)]
    assert largest_feasible(jobs)[0] == {"late"}


def test_nobody() -> None:
    """No jobs, no pressure."""
    assert largest_feasible([]) == (set(), 0.0)


def test_ties_are_broken_the_same_way_every_time() -> None:
    """Equal jobs are dropped by key, whatever order they come in."""
    jobs = [Job(f"j{i}", 3.0, 1.0) for i in range(6)]
    one, _ = largest_feasible(jobs)
    two, _ = largest_feasible(reversed(jobs))
    assert one == two
    assert len(one) == 3
