"""A KV connector that stands for NIXL, LMCache and the like: prompts whose KV lies elsewhere.

What it can load of a request is written in the request's own ``kv_transfer_params``:
``tokens`` from the first, ``seconds`` of transfer (0 loads within the step), and ``unknown``, how
often it answers that it must look first. It counts how often it was asked.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1 import KVConnectorBase_V1
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, SupportsHMA

TRANSFER = {
    "kv_connector": "FakeConnector",
    "kv_connector_module_path": "fake_connector",
    "kv_role": "kv_both",
}


class FakeConnector(KVConnectorBase_V1, SupportsHMA):
    """See the module's docstring. ``started`` has the loads the harness has not taken up yet."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.started: dict[str, float] = {}
        self.num_asked = 0
        self._left_unknown: dict[str, int] = {}

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        self.num_asked += 1
        known = request.kv_transfer_params or {}
        left = self._left_unknown.setdefault(request.request_id, known.get("unknown", 0))
        if left:
            self._left_unknown[request.request_id] = left - 1
            return None, False
        tokens = min(known.get("tokens", 0), request.num_tokens) - num_computed_tokens
        if known.get("seconds", 0) == 0:  # Within the step: one token must be left to compute.
            tokens = min(tokens, request.num_tokens - 1 - num_computed_tokens)
        return (tokens, known["seconds"] > 0) if tokens > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        seconds = (request.kv_transfer_params or {}).get("seconds", 0)
        if num_external_tokens and seconds:
            self.started[request.request_id] = seconds

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        return False, None

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(
        self, layer_name: str, kv_layer: Any, attn_metadata: Any, **_: Any
    ) -> None: ...

    def wait_for_save(self) -> None: ...
