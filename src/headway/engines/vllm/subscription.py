"""A reader of the channel in the event loop of an HTTP server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headway.engines.vllm.asgi import App, Receive, Scope, Send
from headway.engines.vllm.channel import Receiver


class Subscription:
    """Hands on what schedulers say in *folder*, from :meth:`open` on.

    Args:
        take: Is called with each message, in the event loop's thread.
    """

    def __init__(self, folder: str | Path, take: Callable[[dict[str, Any]], Any]) -> None:
        self._folder = folder
        self._take = take
        self._receiver: Receiver | None = None

    def open(self) -> None:
        """Begin to listen in the running event loop; harmless when called again.

        Raises:
            UserError: The folder cannot be used.
        """
        if self._receiver is None:
            self._receiver = Receiver(self._folder)
            asyncio.get_running_loop().add_reader(self._receiver.fileno(), self.hear)

    def hear(self) -> None:
        """Take in what was said until now, also before the event loop comes to it."""
        if self._receiver is not None:
            for message in self._receiver.receive():
                self._take(message)

    def close(self) -> None:
        """Listen no longer; harmless when called again."""
        receiver, self._receiver = self._receiver, None
        if receiver is not None:
            asyncio.get_running_loop().remove_reader(receiver.fileno())
            receiver.close()

    async def live_through(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the server's life (ASGI's ``lifespan``) on to *app*, and close at its end."""
        try:
            await app(scope, receive, send)
        finally:
            self.close()
