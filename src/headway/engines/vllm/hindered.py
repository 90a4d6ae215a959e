"""Which waiting requests the engine could not start now, whatever the plan said, and why.

A request whose KV is being loaded, whose grammar is being compiled or for whose adapter no slot is
free is passed over by the stock loop; a plan that counted on it would give its step to nobody.
Only requests that something can hinder are looked at, few before each plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vllm.v1.request import Request, RequestStatus

from headway.engines.vllm.external import External
from headway.policy.events import CannotStart

LOADING = "its KV is being loaded"
COMPILING = "its grammar is being compiled"
NO_SLOT = "every adapter's slot is taken"
STALE = "a token from before its preemption is on its way"
UNKNOWN = "the KV connector is still looking for its KV"


class Hindrances:
    """Keeps why each waiting request cannot start, as the core was told it.

    Args:
        scheduler: vLLM's, whose own state is asked.
        external: Asks the KV connector again about whom it could not tell of yet.
    """

    def __init__(self, scheduler: Any, external: External) -> None:
        self._scheduler = scheduler
        self._external = external
        lora = scheduler.lora_config
        self._num_slots = lora.max_loras if lora is not None else 0
        self._told: dict[str, str] = {}
        self._looked_at: set[str] = set()
        self._with_adapter: set[str] = set()
        self._in_use: set[int] = set()
        self._loaded: set[str] = set()

    def look_at(self, request_ids: Iterable[str]) -> None:
        """Look at requests that are new, wait again, or were let in and not started."""
        for request_id in request_ids:
            request = self._scheduler.requests.get(request_id)
            if request is not None and request.status != RequestStatus.RUNNING:
                self._looked_at.add(request_id)
                if _adapter(request):
                    self._with_adapter.add(request_id)

    def forget(self, request_id: str) -> None:
        """A request ended, or runs."""
        self._told.pop(request_id, None)
        for kept in (self._looked_at, self._with_adapter, self._loaded):
            kept.discard(request_id)

    def is_hindered(self, request_id: str) -> bool:
        """Return whether the engine could not have started a request just now."""
        request = self._scheduler.requests.get(request_id)
        self._in_use = self._adapters_in_use()
        return request is not None and bool(self._why(request))

    def news(self, at_s: float) -> CannotStart | None:
        """Return what has changed since the core was told last."""
        in_use = self._adapters_in_use()
        if in_use != self._in_use:
            self._in_use = in_use
            self._looked_at |= self._with_adapter
        if not self._looked_at:
            return None
        why: dict[str, str] = {}
        loaded: dict[str, int] = {}
        for request_id in sorted(self._looked_at):
            request = self._scheduler.requests[request_id]
            if request.status == RequestStatus.RUNNING:
                self.forget(request_id)
                continue
            now = self._why(request)
            if now == LOADING:
                self._loaded.add(request_id)
            if now != self._told.get(request_id, ""):
                self._told[request_id] = why[request_id] = now
                if request_id in self._loaded:
                    loaded[request_id] = min(request.num_computed_tokens, request.num_tokens - 1)
                    if not loaded[request_id]:
                        self._loaded.discard(request_id)  # Nothing came: it is computed after all.
            if now in ("", NO_SLOT):  # The next change of adapters is seen above.
                self._looked_at.discard(request_id)
        return CannotStart(at_s, why, loaded) if why else None

    def startable(
        self, request_ids: Iterable[str], sitting_out: Sequence[Request]
    ) -> Iterator[str]:
        """Yield those of a plan's new requests whose adapters have slots together.

        The stock loop counts the adapters of whom it computes in this step. Whoever sits it out
        holds a slot as well: the step after this may compute all of them. A transfer takes none.
        """
        if not self._num_slots:
            yield from request_ids
            return
        in_use = self._adapters_in_use() | adapters_of(sitting_out)
        for request_id in request_ids:
            request = self._scheduler.requests.get(request_id)
            adapter = _adapter(request) if request is not None else 0
            if adapter and adapter not in in_use:
                if len(in_use) >= self._num_slots:
                    continue
                if not self._external.is_transfer(request):
                    in_use.add(adapter)
            yield request_id

    def _adapters_in_use(self) -> set[int]:
        if not self._num_slots:
            return set()
        return adapters_of(self._scheduler.running)

    def _why(self, request: Request) -> str:
        is_here = request.request_id in self._scheduler.finished_recving_kv_req_ids
        if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS and not is_here:
            return LOADING
        if request.status == RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            asked = request.structured_output_request
            if asked is not None and asked.grammar is None:
                return COMPILING
        if request.num_stale_output_tokens and not request.drop_stale_output:
            return STALE
        if self._external.is_unknown(request):
            return UNKNOWN
        adapter = _adapter(request)
        if adapter and adapter not in self._in_use and len(self._in_use) >= self._num_slots:
            return NO_SLOT
        return ""


def adapters_of(requests: Iterable[Request]) -> set[int]:
    """Return the numbers of the adapters that *requests* use."""
    return {adapter for request in requests if (adapter := _adapter(request))}


def _adapter(request: Request) -> int:
    """Return the number of a request's LoRA adapter, 0 without one."""
    return request.lora_request.lora_int_id if request.lora_request else 0
