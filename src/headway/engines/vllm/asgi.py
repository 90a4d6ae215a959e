"""The words of ASGI that our parts of the HTTP server share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def path_of(scope: Scope) -> str:
    """Return the path asked for, below where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def starts(message: Message) -> bool:
    """Return whether *message* is the start of an answer."""
    return bool(message["type"] == "http.response.start")


def grown(start: Message, num_bytes: int) -> Message:
    """Return the start of an answer that becomes so much longer, where it says how long it is."""
    headers = [
        (key, b"%d" % (int(value) + num_bytes) if key.lower() == b"content-length" else value)
        for key, value in start["headers"]
    ]
    return {**start, "headers": headers}
