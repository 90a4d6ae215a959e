"""The two servers that are compared: started here one after the other, or running already."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headway.bench.access import Access
from headway.bench.probe import ServerInfo, ask_server
from headway.bench.server import HEADWAY_SERVE, LiveServer, ServerDied
from headway.bench.verify_counts import look
from headway.errors import HeadwayError, UserError

READY_WITHIN_S = 1200.0
"""A large model is compiled at its first start."""


class Servers(Protocol):
    """Where stock vLLM and Headway are to be had.

    Attributes:
        can_press: Whether Headway can be started once more, with hardly any KV cache.
        started_s: Seconds that starting took, all servers together.
    """

    can_press: bool
    started_s: float

    def stock(self) -> AbstractContextManager[str]:
        """Provide stock vLLM; its URL."""

    def headway(self) -> AbstractContextManager[str]:
        """Provide Headway; its URL."""

    def pressed(self, args: Sequence[str]) -> AbstractContextManager[str]:
        """Provide Headway with more arguments; its URL."""


@dataclass(slots=True)
class Started:
    """Servers of one model, each started for as long as it is needed.

    Attributes:
        vllm_args: Arguments of both.
        folder: Takes their logs.
        on_wait: See :class:`~headway.bench.server.LiveServer`.
        program: What to run instead of ``headway serve``.
    """

    model: str
    vllm_args: Sequence[str]
    folder: Path
    on_wait: Callable[[float], None]
    program: Sequence[str] | None = None
    can_press: bool = True
    started_s: float = 0.0

    @contextmanager
    def _serve(self, name: str, args: Sequence[str], title: str) -> Iterator[str]:
        log = self.folder / f"{name}.log"
        server = LiveServer(
            [self.model, *args],
            log,
            ready_within_s=READY_WITHIN_S,
            on_wait=self.on_wait,
            program=self.program or HEADWAY_SERVE,
        )
        try:
            with server:
                self.started_s += server.ready_after_s or 0.0
                try:
                    yield server.url
                except HeadwayError:
                    server.check_alive(after_failure=True)  # Its end is the cause of what was seen.
                    raise
        except ServerDied:
            raise HeadwayError(_end_of(title, log)) from None

    def stock(self) -> AbstractContextManager[str]:
        """Start stock vLLM."""
        return self._serve("stock", ["--policy", "stock", *self.vllm_args], "Stock vLLM")

    def headway(self) -> AbstractContextManager[str]:
        """Start Headway with its page, and no setting else."""
        return self._serve("headway", ["--page", *self.vllm_args], "Headway")

    def pressed(self, args: Sequence[str]) -> AbstractContextManager[str]:
        """Start Headway with hardly any KV cache."""
        words = ["--page", *self.vllm_args, *args]
        return self._serve("pressed", words, "Headway with a tiny KV cache")


def _end_of(title: str, log: Path) -> str:
    """Return one sentence on a server that ended, with its own last word where it is ours."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    told = [line.removeprefix("headway: ") for line in lines if line.startswith("headway: ")]
    why = f" ({told[-1].rstrip('.')})" if told else ""
    return f"{title} ended by itself or never answered{why}; its log is {log}."


@dataclass(slots=True)
class Running:
    """Two servers that run already."""

    stock_url: str
    headway_url: str
    can_press: bool = False
    started_s: float = 0.0

    @contextmanager
    def stock(self) -> Iterator[str]:
        """Return the first URL."""
        yield self.stock_url

    @contextmanager
    def headway(self) -> Iterator[str]:
        """Return the second URL."""
        yield self.headway_url

    def pressed(self, args: Sequence[str]) -> AbstractContextManager[str]:
        """Return the second URL: how it was started is up to the user."""
        return self.headway()


def checked(urls: Sequence[str], access: Access) -> Running:
    """Return the servers at two URLs, stock vLLM first.

    Raises:
        UserError: One is not there or no vLLM, they serve different models, or are swapped.
    """
    stock, headway = (url.rstrip("/") for url in urls)
    if stock == headway:
        raise UserError("Both --url are the same server; give stock vLLM's, then Headway's.")
    names = [asyncio.run(vllm_at(url, access)).model for url in (stock, headway)]
    if names[0] != names[1]:
        raise UserError(
            f"{stock} serves {names[0]!r:.80} and {headway} {names[1]!r:.80}: both must serve the"
            " same model under one name (--served-model-name)."
        )
    if asyncio.run(look(stock, access)).are_headways:
        raise UserError(f"{stock} is a Headway server; give stock vLLM's --url first.")
    return Running(stock, headway)


async def vllm_at(url: str, access: Access) -> ServerInfo:
    """Return what vLLM at *url* says of itself.

    Raises:
        UserError: Nothing answers there, or something else does.
    """
    info = await ask_server(url, access)
    if not info.is_vllm:
        raise UserError(f"What answers at {url} does not say it is vLLM; verify compares vLLMs.")
    return info
