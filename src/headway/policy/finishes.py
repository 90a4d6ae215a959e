"""When running requests are predicted to finish, so that who outlives it is predicted again."""

from __future__ import annotations

from collections.abc import Mapping

from sortedcontainers import SortedList

from headway.errors import InvariantError
from headway.request import Request, State


class Finishes:
    """The predicted last step of each running request. ``step`` counts steps since the start."""

    def __init__(self) -> None:
        self._finish: dict[str, int] = {}
        self._by_finish: SortedList = SortedList()

    def __len__(self) -> int:
        return len(self._finish)

    def enter(self, request: Request, step: int) -> None:
        """Note a running request (again)."""
        self._strike(request.request_id)
        finish = step + request.remaining_output_tokens
        self._finish[request.request_id] = finish
        self._by_finish.add((finish, request.request_id))

    def leave(self, request_id: str) -> None:
        """Strike a request off: it finished or lost its KV."""
        self._strike(request_id)

    def overdue(self, step: int) -> list[str]:
        """Return requests predicted to have finished before *step*."""
        return [request_id for _, request_id in self._by_finish.irange(maximum=(step,))]

    def validate(self, running: Mapping[str, Request]) -> None:
        """Compare with the running requests.

        Raises:
            InvariantError: A running request is not noted, or a noted one does not run.
        """
        for request in running.values():
            if request.state is not State.RUNNING:
                raise InvariantError(f"{request!r} is noted as running; {request.tell()}")
        if self._finish.keys() != running.keys() or len(self._by_finish) != len(running):
            raise InvariantError(f"{sorted(self._finish)} are noted, {sorted(running)} run")

    def _strike(self, request_id: str) -> None:
        finish = self._finish.pop(request_id, None)
        if finish is not None:
            self._by_finish.remove((finish, request_id))
