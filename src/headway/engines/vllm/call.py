"""The engine's calls, overheard: promises go in with them, what the engine says comes out.

vLLM's endpoints all ask one object for tokens, whatever their answer looks like. Which HTTP
request a call belongs to is told by the task it is made in.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Protocol

from headway.slo import NO_PROMISE, STAMP, Slo


class Party(Protocol):
    """One HTTP request, as the engine's calls for it know it."""

    def tell(self, params: Any) -> None:
        """Put what was promised into *params*, vLLM's ``SamplingParams`` of a call.

        Nothing that a client wrote there in our names stays.
        """

    def hear(self, output: Any) -> None:
        """Note one output of the engine (vLLM's ``RequestOutput``)."""


class Bystander:
    """A request of an endpoint that the edge does not answer for; nobody could tell its client.

    Args:
        slo: What the engine is told of it: no promise, so that there is nothing to refuse.
    """

    def __init__(self, slo: Slo) -> None:
        self._slo = slo

    def tell(self, params: Any) -> None:
        """Put that into *params* in place of what a client may have written."""
        params.extra_args = {**(params.extra_args or {}), STAMP: self._slo.stamp()}

    def hear(self, output: Any) -> None:
        """Take no notice."""


current: ContextVar[Party | None] = ContextVar("headway_party", default=None)
"""The request the running task belongs to; tasks started by vLLM for it inherit it. ``None`` in a
call that no request made."""


NOBODY = Bystander(NO_PROMISE)
"""Who makes a call that no request made."""


def engine_client(scope: MutableMapping[str, Any]) -> Any:
    """Return the server's engine client from where vLLM's own routes find it, or ``None``."""
    return getattr(scope["app"].state, "engine_client", None) if "app" in scope else None


def settings_of(client: Any) -> Mapping[str, Any]:
    """Return the scheduler's settings (:class:`headway.config.Settings`) as they were given."""
    config = getattr(getattr(client, "vllm_config", None), "additional_config", None)
    settings = config.get("headway") if isinstance(config, Mapping) else None
    return settings if isinstance(settings, Mapping) else {}


def attach_to(client: Any) -> None:
    """Wrap the client's ``generate``, once.

    Every endpoint that generates calls it, with the sampling parameters second.
    """
    if client is None or getattr(client.generate, "heard_by_headway", False):
        return
    generate = client.generate

    def heard(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        params = args[1] if len(args) > 1 else kwargs.get("sampling_params")
        if params is not None:
            (current.get() or NOBODY).tell(params)
        return _heard(generate(*args, **kwargs))

    heard.heard_by_headway = True  # type: ignore[attr-defined]
    client.generate = heard


async def _heard(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Yield *outputs*, telling the current request of each; closing closes both."""
    async with aclosing(outputs):
        async for output in outputs:
            party = current.get()
            if party is not None:
                party.hear(output)
            yield output
