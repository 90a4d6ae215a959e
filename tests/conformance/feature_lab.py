"""A virtual server whose requests use what people leave on: adapters, grammars, loads, drafts."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
from vllm.lora.request import LoRARequest
from vllm.pooling_params import PoolingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.harness import VirtualRun
from headway.engines.vllm.made_up_tokens import STOP, own_token
from headway.latency.model import StepShape


@dataclass(frozen=True)
class Extra:
    """What one request uses beside its call.

    Attributes:
        adapter: Number of its LoRA adapter, 0 for none.
        compile_s: Seconds until its grammar is ready; ``None`` without one.
        remote_tokens: Tokens of its prompt whose KV lies elsewhere.
        load_s: Seconds until they are here; 0 loads them within the step.
        num_unknown: How often the connector has to look first.
        is_pooled: It asks for a vector, not for tokens.
    """

    adapter: int = 0
    compile_s: float | None = None
    remote_tokens: int = 0
    load_s: float = 0.0
    num_unknown: int = 0
    is_pooled: bool = False


class AnyGrammar:
    """Accepts everything."""

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        return True

    def validate_tokens(self, tokens: list[int]) -> list[int]:
        return tokens

    def is_terminated(self) -> bool:
        return False


class FeatureRun(VirtualRun):
    """See the module's docstring.

    Args:
        extras: By request.
        accepted: Share of the draft tokens that turn out right.
        drafted: Share of the steps in which a stream has drafts at all.
    """

    def __init__(
        self,
        engine: Any,
        truth: Any,
        extras: Mapping[str, Extra],
        accepted: float = 0.6,
        drafted: float = 0.7,
        **kwargs: Any,
    ) -> None:
        super().__init__(engine, truth, **kwargs)
        self._extras = extras
        self._accepted, self._drafted = accepted, drafted
        self._compiling: list[tuple[float, Future[Any]]] = []
        self._loading: dict[str, float] = {}
        self._is_looking = False

    def request_of(self, call: VirtualCall) -> Any:
        extra = self._extras.get(call.request_id, Extra())
        request = super().request_of(call)
        if extra.is_pooled:
            request.sampling_params, request.pooling_params = None, PoolingParams()
            request.max_tokens = 1
        if extra.adapter:
            name = f"adapter {extra.adapter}"
            request.lora_request = LoRARequest(name, extra.adapter, "nowhere")
        if extra.remote_tokens:
            request.kv_transfer_params = {
                "tokens": extra.remote_tokens,
                "seconds": extra.load_s,
                "unknown": extra.num_unknown,
            }
        if extra.compile_s is not None:
            self._ask_for_grammar(request, self.clock.time_s + extra.compile_s)
        return request

    def _ask_for_grammar(self, request: Any, ready_s: float) -> None:
        from vllm.v1.request import RequestStatus
        from vllm.v1.structured_output.request import StructuredOutputRequest

        grammar: Future[Any] = Future()
        asked = StructuredOutputRequest(StructuredOutputsParams(regex="a+"))
        asked.grammar = grammar
        request.structured_output_request = asked
        request.status = RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR
        self._compiling.append((ready_s, grammar))

    def step(self) -> None:
        still = []
        for ready_s, grammar in self._compiling:
            if ready_s <= self.clock.time_s:
                grammar.set_result(AnyGrammar())
            else:
                still.append((ready_s, grammar))
        self._compiling = still
        super().step()
        self._take_up_loads()

    def _take_up_loads(self) -> None:
        if self.scheduler.connector is None:
            return
        started = self.scheduler.connector.started
        for request_id, seconds in started.items():
            self._loading[request_id] = self.clock.time_s + seconds
        started.clear()

    def pause_s(self) -> float:
        return 1e-3

    def pooler_output(self, ids: list[str], emitting: frozenset[str]) -> list[Any] | None:
        pooled = [i for i in ids if self._extras.get(i, Extra()).is_pooled]
        if not pooled:
            return None
        return [torch.zeros(4) if i in pooled and i in emitting else None for i in ids]

    def connector_output(self, output: Any) -> KVConnectorOutput | None:
        if self.scheduler.connector is None or self.engine.host_blocks:
            return super().connector_output(output)
        self._take_up_loads()
        here = {i for i, ready_s in self._loading.items() if ready_s <= self.clock.time_s}
        for request_id in here:
            del self._loading[request_id]
        return KVConnectorOutput(finished_recving=here or None)

    def _launch(self, output: Any) -> None:
        if self.engine.transfer is not None:
            output.kv_connector_metadata = None  # The link to the host is another connector's.
        self._drafts = output.scheduled_spec_decode_tokens
        super()._launch(output)

    def _shape(self, tokens: Mapping[str, int]) -> tuple[StepShape, frozenset[str]]:
        """Count a stream's drafts as positions of its decode, not as a prompt's chunk."""
        drafts = {i: len(d) for i, d in self._drafts.items() if i in tokens}
        shape, emitting = super()._shape({i: n - drafts.get(i, 0) for i, n in tokens.items()})
        more = sum(drafts.values())
        grown = StepShape(
            shape.num_prefill_tokens,
            shape.num_prefills,
            shape.num_decodes + more,
            shape.sum_context_tokens,
            shape.chunk_context,
        )
        return grown, emitting

    def sample(self, output: Any, request_id: str) -> list[int]:
        if self._extras.get(request_id, Extra()).is_pooled:
            return []
        first = super().sample(output, request_id)
        drafts = output.scheduled_spec_decode_tokens.get(request_id, [])
        request = self.scheduler.requests.get(request_id)
        if not drafts or not first or request is None:
            return first
        num = 1 + sum(self._chance(request_id, i) < self._accepted for i in range(len(drafts)))
        left = self.outcomes[request_id].call.num_output_tokens - request.num_output_tokens
        ends = left <= num
        return [own_token(request_id)] * (min(num, left) - ends) + [STOP] * ends

    def _chance(self, request_id: str, salt: int) -> float:
        """Return a number in [0, 1) that stock and we draw alike for a stream's token."""
        request = self.scheduler.requests[request_id]
        text = f"{request_id} {request.num_output_tokens} {salt}"
        return zlib.crc32(text.encode()) / 2**32

    def _settle(self) -> None:
        super()._settle()
        if self.engine.num_drafts and not self.engine.asynchronous:
            self._draft()

    def _draft(self) -> None:
        names, drafts = [], []
        for request in self.scheduler.running:
            name = request.request_id
            if request.num_output_tokens and self._chance(name, 99) < self._drafted:
                names.append(name)
                drafts.append([own_token(name)] * self.engine.num_drafts)
        self.scheduler.update_draft_token_ids(DraftTokenIds(names, drafts))
