"""What a KV connector (NIXL, LMCache, offloading) says it can load of a waiting prompt.

vLLM asks its connector when it is about to start a request, and may ask as often as it likes. We
ask when a request comes, so that a prompt whose KV lies elsewhere is not taken for one to compute.
"""

from __future__ import annotations

from typing import Any

from headway.engines.vllm import compat
from headway.engines.vllm.swap_connector import SwapConnector


class External:
    """How far the KV of each waiting prompt could be loaded. Sizes in tokens."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._connector: Any = scheduler.connector
        if isinstance(self._connector, SwapConnector):  # What it has is told by other ways.
            self._connector = None
        self._reach: dict[str, int] = {}
        self._unknown: dict[str, int] = {}
        self._transfers: dict[str, None] = {}  # In order: plans are the same in every run.

    @property
    def exists(self) -> bool:
        """Whether there is anybody to ask."""
        return self._connector is not None

    def find(self, request: Any, num_local_tokens: int) -> int:
        """Return the tokens found here or elsewhere, given those found here."""
        if self._connector is None:
            return num_local_tokens
        name = request.request_id
        if name not in self._reach:
            self._ask(request, num_local_tokens)
        most = max(request.num_tokens - 1, 0)
        return max(num_local_tokens, min(self._reach.get(name, 0), most))

    def is_unknown(self, request: Any) -> bool:
        """Return whether the connector cannot tell of a request yet; it is asked again."""
        num_local_tokens = self._unknown.get(request.request_id)
        if num_local_tokens is not None:
            self._ask(request, num_local_tokens)
        return request.request_id in self._unknown

    def view(self) -> dict[str, Any]:
        """Return what :class:`~headway.policy.view.EngineView` tells of transfers to be begun."""
        requests = self._scheduler.requests
        loads = tuple(i for i in self._transfers if self.is_transfer(requests[i]))
        if not loads:
            return {}
        return {"loads": loads, "num_kept_blocks": compat.blocks_kept_from_loads(self._scheduler)}

    def is_transfer(self, request: Any) -> bool:
        """Return whether a request starts with a transfer, in which nothing is computed."""
        return request.request_id in self._transfers and not request.num_computed_tokens

    def forget(self, request_id: str) -> None:
        """A request ended, or computes what could not be loaded."""
        for known in (self._reach, self._unknown, self._transfers):
            known.pop(request_id, None)

    def _ask(self, request: Any, num_local_tokens: int) -> None:
        name = request.request_id
        self._unknown.pop(name, None)
        if request.skip_reading_prefix_cache or request.num_computed_tokens:
            self._reach[name] = 0
            return
        num_tokens, is_transfer = self._connector.get_num_new_matched_tokens(
            request, num_local_tokens
        )
        if num_tokens is None:
            self._unknown[name] = num_local_tokens
        elif num_tokens and is_transfer:
            self._transfers[name] = None
        self._reach[name] = num_local_tokens + (num_tokens or 0)
