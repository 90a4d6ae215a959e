"""Load reports on answers: ``endpoint-load-metrics``, for balancers that choose a server by it.

An ASGI middleware, installed by ``headway serve`` or by ``--middleware
headway.engines.vllm.load_report.LoadReports``. As with vLLM, a request asks for the report by the
header ``endpoint-load-metrics-format``; unlike vLLM's, ours is on streams, refusals and other
errors too, and has the rates without which Envoy drops it. vLLM's stays where we know nothing yet.
It works its own out by a walk over all its metrics, so it is not asked where we answer.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

from headway.engines.vllm.api_keys import is_allowed
from headway.engines.vllm.asgi import App, Message, Receive, Scope, Send
from headway.engines.vllm.channel import LOAD_CHANNEL_VARIABLE
from headway.engines.vllm.subscription import Subscription
from headway.errors import UserError
from headway.metrics.orca_report import OrcaReport
from headway.metrics.server_load import HeardLoads

logger = logging.getLogger("vllm.headway")

REPORT = b"endpoint-load-metrics"
FORMAT = b"endpoint-load-metrics-format"
Form = Callable[[OrcaReport], str]
FORMATS: dict[bytes, Form] = {b"text": OrcaReport.text, b"json": OrcaReport.json}
"""What the header may ask for, in any case; vLLM's answers to other values are left as they are."""


class LoadReports:
    """Use as ``--middleware headway.engines.vllm.load_report.LoadReports``.

    It belongs outside :class:`~headway.engines.vllm.edge.SloEdge`, so after it on the command
    line. Without the environment variable :data:`LOAD_CHANNEL_VARIABLE` it says so in the log, and
    passes everything on. A client that does not show the server's API key is told nothing.

    Args:
        now_s: A monotonic clock.
    """

    def __init__(self, app: App, now_s: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._now_s = now_s
        self._load = HeardLoads()
        folder = os.environ.get(LOAD_CHANNEL_VARIABLE)
        self._subscription = Subscription(folder, self._take) if folder else None
        if not folder:
            logger.warning(
                "LoadReports has nothing to report: name a folder in %s.", LOAD_CHANNEL_VARIABLE
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        subscription = self._subscription
        if subscription is not None and scope["type"] == "lifespan":
            await subscription.live_through(self._app, scope, receive, send)
            return
        form = _asked_form(scope) if subscription is not None and scope["type"] == "http" else None
        if form is None or not _may_know(scope) or not self._listens():
            await self._app(scope, receive, send)
        else:
            if self._report() is not None:
                scope = {**scope, "headers": [h for h in scope["headers"] if h[0] != FORMAT]}

            async def send_with_report(message: Message) -> None:
                await send(self._reported(message, form))

            await self._app(scope, receive, send_with_report)

    def _reported(self, message: Message, form: Form) -> Message:
        """Return *message*, if it starts an answer with the report among its headers."""
        report = self._report() if message["type"] == "http.response.start" else None
        if report is None:
            return message
        kept = [h for h in message.get("headers", ()) if h[0].lower() != REPORT]
        return {**message, "headers": [*kept, (REPORT, form(report).encode())]}

    def _report(self) -> OrcaReport | None:
        if self._subscription is None:
            return None
        self._subscription.hear()
        return self._load.report(self._now_s())

    def _listens(self) -> bool:
        """Begin to listen, unless it was begun; return whether that can be."""
        try:
            if self._subscription is not None:
                self._subscription.open()
        except UserError as error:
            logger.error("No load is reported. %s", error)
            self._subscription = None
        return self._subscription is not None

    def _take(self, message: dict[str, object]) -> None:
        self._load.take(message, self._now_s())


def _may_know(scope: Scope) -> bool:
    return "app" in scope and is_allowed(scope)


def _asked_form(scope: Scope) -> Form | None:
    """Return how the report is to be written, ``None`` where none is asked for, or in no way known.

    Of several such headers the first counts, as for vLLM.
    """
    for name, value in scope["headers"]:
        if name == FORMAT:
            return FORMATS.get(value.strip().lower())
    return None
