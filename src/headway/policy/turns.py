"""When it would be somebody's turn if the server knew no promises: first come, first served.

A request that names no promise must not wait for ever behind those that do. So a clock runs beside
the scheduler: a server that takes everybody in order of arrival, at the speed of full steps, each
for as long as it keeps what it needs most of, the engine or the KV cache. Whoever asked for no
promise goes before all claims once that server would have begun it.
"""

from __future__ import annotations

from headway.latency.model import LatencyModel, StepShape
from headway.policy.view import EngineView
from headway.request import Request


class Turns:
    """The clock; it is told of everybody while there are requests without a promise."""

    def __init__(self) -> None:
        self._free_at_s = 0.0
        self._view: EngineView | None = None

    def saw(self, view: EngineView) -> None:
        """Learn how large the engine is."""
        self._view = view

    def arrived(
        self, request: Request, latency: LatencyModel, beside: StepShape, step_s: float
    ) -> None:
        """Give a newcomer its turn, if it asked for no promise and may go before those who did.

        Args:
            beside: The decodes of a step now, and *step_s* what a step takes.
        """
        begins_s = max(self._free_at_s, request.arrived_at_s)
        self._free_at_s = begins_s + self._keeps_s(request, latency, beside, step_s)
        if not request.slo.is_promise and request.slo.share > 0.0:
            request.turn_at_s = self._free_at_s

    def _keeps_s(
        self, request: Request, latency: LatencyModel, beside: StepShape, step_s: float
    ) -> float:
        """Return the seconds for which a request has the engine, or its part of the KV cache."""
        if self._view is None:
            return 0.0
        ready = request.num_ready_tokens
        decode_s = latency.predict_s(beside)
        prompt_s = latency.predict_s(beside.with_chunk(request.num_prompt_tokens - ready, ready))
        full_s = latency.predict_s(beside.with_chunk(self._view.max_step_tokens, 0))
        # Every full step has the decodes and its fixed cost beside the prompt tokens.
        engine_s = (prompt_s - decode_s) * full_s / max(full_s - decode_s, 1e-9)
        held = request.num_prompt_tokens + request.predicted_output_tokens / 2
        capacity_tokens = self._view.layout.tokens(self._view.num_total_blocks)
        return max(engine_s, held / capacity_tokens * request.steps_left * step_s)
