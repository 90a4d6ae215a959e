"""vLLM's waiting queue, gated: the stock loop sees only whom the plan admits, in its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request


def gated(queue: RequestQueue) -> GatedQueue:
    """Return a gated queue with the requests of a stock one."""
    ours = GatedQueue()
    ours.prepend_requests(queue)
    return ours


class GatedQueue(RequestQueue):
    """Every waiting request by id; ``present`` opens the gate for one call of ``schedule``.

    Length and iteration tell the truth about all that wait. Truth value, peek and pop speak
    only of the presented ones, because the stock loop admits until the queue is empty.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, Request] = {}
        self._presented: deque[Request] = deque()

    def present(self, request_ids: Iterable[str]) -> None:
        """Let the stock loop see these waiting requests, in this order."""
        waiting = self._waiting
        self._presented = deque(waiting[i] for i in request_ids if i in waiting)

    def close(self) -> None:
        """Shut the gate after ``schedule``."""
        self._presented.clear()

    def add_request(self, request: Request) -> None:
        """Let a request wait."""
        self._waiting[request.request_id] = request

    def prepend_request(self, request: Request) -> None:
        """Let a preempted request wait; its place is the core's choice."""
        self._waiting[request.request_id] = request

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        """Let requests the stock loop skipped wait again."""
        for request in requests:
            self._waiting[request.request_id] = request

    def pop_request(self) -> Request:
        """Take the first presented request out."""
        request = self._presented.popleft()
        del self._waiting[request.request_id]
        return request

    def peek_request(self) -> Request:
        """Return the first presented request."""
        if not self._presented:
            raise IndexError("peek from an empty queue")
        return self._presented[0]

    def remove_request(self, request: Request) -> None:
        """Forget a request that left."""
        self.remove_requests((request,))

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Forget requests that left."""
        gone = {r.request_id for r in requests}
        for request_id in gone:
            self._waiting.pop(request_id, None)
        if self._presented:
            self._presented = deque(r for r in self._presented if r.request_id not in gone)

    def __contains__(self, request: object) -> bool:
        return getattr(request, "request_id", None) in self._waiting

    def __bool__(self) -> bool:
        return bool(self._presented)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._waiting.values()))
