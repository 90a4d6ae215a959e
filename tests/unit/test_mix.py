"""Mixing workloads keeps every request, its order and its name apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.workloads import mix
from headway.workloads.prefixes import found_tokens
from headway.workloads.schema import WorkloadRequest


def workload(*times_s: float, prompt: int = 1) -> list[WorkloadRequest]:
    return [
        WorkloadRequest(f"r{i}", at_s, prompt, i + 1, prefix_id="p", prefix_tokens=1)
        for i, at_s in enumerate(times_s)
    ]


@given(
    shares=st.lists(st.floats(0, 1e6), min_size=1, max_size=8).filter(lambda s: sum(s) > 1e-3),
    total=st.integers(0, 1000),
)
def test_counts_add_up_and_are_less_than_one_off(shares: list[float], total: int) -> None:
    """Largest remainder: the sum is exact and nobody is a whole request from its share."""
    counts = mix.counts_of(shares, total)
    assert sum(counts) == total
    for share, found in zip(shares, counts, strict=True):
        assert abs(found - share / sum(shares) * total) < 1 + 1e-6


@pytest.mark.parametrize("shares", [[], [0.0, 0.0], [1.0, -0.5], [float("nan")], [float("inf")]])
def test_shares_that_are_none_are_refused(shares: list[float]) -> None:
    """One sentence for negative, missing and infinite shares."""
    with pytest.raises(UserError, match="shares of a mix"):
        mix.counts_of(shares, 10)


def test_by_shares_takes_the_front_of_each_part_in_its_order() -> None:
    """75 and 25 of 100, each part's outputs counting up, ids and prefixes apart."""
    parts = {"a": (3.0, workload(*range(90))), "b": (1.0, workload(*range(30), prompt=9))}
    mixed = mix.by_shares(parts, 100, np.random.default_rng(0))
    assert len({r.id for r in mixed}) == 100
    for name, size, prompt in (("a", 75, 1), ("b", 25, 9)):
        part = [r for r in mixed if r.id.startswith(f"{name}/")]
        assert [r.num_output_tokens for r in part] == list(range(1, size + 1))
        assert {(r.prefix_id, r.num_prompt_tokens) for r in part} == {(f"{name}/p", prompt)}
    assert {r.arrived_at_s for r in mixed} == {0.0}
    assert [r.id[0] for r in mixed[:75]] != ["a"] * 75


def test_a_part_too_short_for_its_share_is_refused() -> None:
    """The sentence names the part and both numbers."""
    parts = {"a": (1.0, workload(1.0)), "b": (1.0, workload(*range(9)))}
    with pytest.raises(UserError, match="'a' of the mix has 1 requests, but its share of 10 is 5"):
        mix.by_shares(parts, 10, np.random.default_rng(0))


def test_chains_of_two_parts_never_meet() -> None:
    """Their first ids differ, and nothing after those is shared."""
    rows = [WorkloadRequest("r", 0.0, 40, 1, hash_ids=(1, 2, 3), hash_tokens=16)] * 2
    parts = {"a": (1.0, rows[:1]), "b": (2.0, rows)}
    merged = mix.by_shares(parts, 3, np.random.default_rng(0))
    assert sorted(r.hash_ids for r in merged) == [("a/1", 2, 3), ("b/1", 2, 3), ("b/1", 2, 3)]
    assert sorted(found_tokens(merged)) == [0, 0, 40]
