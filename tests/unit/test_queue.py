"""vLLM's waiting queue, gated."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.engines.vllm.queue import GatedQueue


def filled(*names: str) -> tuple[GatedQueue, dict[str, Any]]:
    queue = GatedQueue()
    requests: dict[str, Any] = {n: SimpleNamespace(request_id=n) for n in names}
    for request in requests.values():
        queue.add_request(request)
    return queue, requests


def test_a_closed_gate_shows_nobody_but_counts_everybody() -> None:
    """Length and iteration tell the truth; truth value says whom the loop may see."""
    queue, requests = filled("a", "b")
    assert not queue
    assert len(queue) == 2
    assert list(queue) == list(requests.values())
    assert requests["a"] in queue
    with pytest.raises(IndexError):
        queue.peek_request()


def test_the_presented_come_out_in_the_plans_order() -> None:
    """Peek and pop agree; unknown ids are ignored."""
    queue, requests = filled("a", "b", "c")
    queue.present(["c", "nobody", "a"])
    assert queue
    assert queue.peek_request() is queue.pop_request() is requests["c"]
    assert queue.pop_request() is requests["a"]
    assert not queue
    assert list(queue) == [requests["b"]]


def test_closing_keeps_the_unserved_waiting() -> None:
    """Who was presented and not taken waits on."""
    queue, requests = filled("a", "b")
    queue.present(["a", "b"])
    queue.pop_request()
    queue.close()
    assert not queue
    assert list(queue) == [requests["b"]]


def test_who_returns_is_not_presented_again() -> None:
    """A request preempted or skipped within the step waits for the next plan."""
    queue, _ = filled("a", "b")
    queue.present(["a"])
    skipped = queue.pop_request()
    queue.prepend_request(skipped)
    assert not queue
    assert len(queue) == 2
    queue.prepend_requests([SimpleNamespace(request_id="z")])
    assert len(queue) == 3
    assert not queue


def test_who_left_is_gone_from_both_lists() -> None:
    """Removal works while the gate is open, for one or many, known or not."""
    queue, requests = filled("a", "b", "c")
    queue.present(["a", "b", "c"])
    queue.remove_request(requests["a"])
    queue.remove_requests([requests["b"], SimpleNamespace(request_id="x")])
    assert queue.pop_request() is requests["c"]
    assert len(queue) == 0
