"""Rows of an experiment by name: a stopped run goes on, and a dry one writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from headway.study.named_rows import Task, by_case, measure_missing


def square(x: int) -> int:
    return x * x


def tasks(most: int) -> Iterator[Task]:
    yield from ((f"square|{x}|0", square, (x,)) for x in range(most))


def test_what_is_there_is_not_measured_again(tmp_path: Path) -> None:
    """And whatever was measured before a run stopped is there."""
    path, told = tmp_path / "rows.json", list[str]()

    def stopped() -> Iterator[Task]:
        yield from tasks(2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_missing(path, stopped(), told.append, is_kept=True)
    assert json.loads(path.read_text()) == {"square|0|0": 0, "square|1|0": 1}
    measure_missing(path, tasks(4), told.append, "|3|", is_kept=True)
    assert told == ["square|0|0 0", "square|1|0 1", "square|3|0 9"]


def test_a_dry_run_measures_all_and_writes_nothing(tmp_path: Path) -> None:
    """Beside a file that has some of it."""
    path, told = tmp_path / "rows.json", list[str]()
    path.write_text('{"square|0|0": 7}')
    measure_missing(path, tasks(1), told.append, is_kept=False)
    assert told == ["square|0|0 0"]
    assert path.read_text() == '{"square|0|0": 7}'


def test_rows_are_found_by_case_and_seed() -> None:
    """Of one kind."""
    rows = {"a|x|1|0": 1, "a|x|1|3": 2, "a|y|1|0": 3, "b|x|1|0": 4}
    assert by_case(rows, "a") == {("x", "1"): {"0": 1, "3": 2}, ("y", "1"): {"0": 3}}
    assert by_case(rows, "c") == {}
