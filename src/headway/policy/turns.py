"""When it would be somebody's turn if the server knew no promises: first come, first served.

A request that names no promise must not wait for ever behind those that do. So a clock runs beside
the scheduler: a server that takes everybody in order of arrival, at the speed of full steps, each
for as long as it keeps what it needs most of, the engine or the KV cache. Whoever asked for no
promise goes before the claims that came after it, once that server would have brought its first
token.
"""

from __future__ import annotations

from headway.latency.model import LatencyModel, StepShape
from headway.policy.live_requests import LiveRequests
from headway.policy.pace import Pace
from headway.policy.view import EngineView
from headway.policy.work_rate import WorkRate
from headway.request import Request


class Turns:
    """The clock; it is told of everybody."""

    def __init__(self) -> None:
        self._free_at_s = 0.0
        self._view: EngineView | None = None

    def saw(self, view: EngineView) -> None:
        """Learn how large the engine is."""
        self._view = view

    def arrived(
        self,
        request: Request,
        latency: LatencyModel,
        live: LiveRequests,
        pace: Pace,
        rate: WorkRate,
    ) -> None:
        """Take a newcomer in; one that asked for no promise gets its turn, unless it goes last.

        It is not among the *live* yet.

        Guesses give nobody a later turn (docs/decisions/0011): of a step's time while it is not
        warm, of lengths until enough answers have ended, of a backlog where nobody waits.
        """
        begins_s = request.arrived_at_s
        if live.num_waiting or live.hindered:
            begins_s = max(self._free_at_s, begins_s)
        self._free_at_s = begins_s
        if latency.is_warm and self._view is not None:
            beside = live.decodes
            kv_s = _kv_steps(request, self._view) * pace.step_s if rate.knows_lengths else 0.0
            self._free_at_s += max(_engine_s(request, latency, beside, self._view), kv_s)
        if not request.slo.is_promise and request.slo.share > 0.0:
            request.turn_at_s = self._free_at_s


def _kv_steps(request: Request, view: EngineView) -> float:
    """Return the steps for which it would hold the whole KV cache, for what it holds of it."""
    held = request.num_prompt_tokens + request.predicted_output_tokens / 2
    return held / view.layout.tokens(view.num_total_blocks) * request.steps_left


def _engine_s(
    request: Request, latency: LatencyModel, beside: StepShape, view: EngineView
) -> float:
    """Return the seconds a prompt takes in full steps, which have the decodes beside it."""
    ready = request.num_ready_tokens
    decode_s = latency.predict_s(beside)
    prompt_s = latency.predict_s(beside.with_chunk(request.num_prompt_tokens - ready, ready))
    full_s = latency.predict_s(beside.with_chunk(view.max_step_tokens, 0))
    return (prompt_s - decode_s) * full_s / max(full_s - decode_s, 1e-9)
