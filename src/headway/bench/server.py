"""A Headway server as a subprocess: start it, wait until it answers, stop it and all its children.

with LiveServer(["smollm2", "--policy", "stock"], Path("stock.log")) as server:
    ...  # server.url
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from headway.errors import HeadwayError

HEADWAY_SERVE = (sys.executable, "-m", "headway", "serve")
STOP_WITHIN_S = 15.0
END_WITHIN_S = 5.0
"""A server that ends closes its sockets first: how long its process may outlive its last answer."""
LAST_LOG_LINES = 12
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Ignores a proxy from the environment: the server is on this machine."""


class ServerDied(HeadwayError):
    """A server ended, or never answered; the sentence carries its last log lines."""


def free_port() -> int:
    """Return a TCP port that nobody listens on right now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def stop_on_signals() -> None:
    """Let SIGTERM, and the end of the terminal, end this program the way Ctrl-C does.

    Its servers are stopped first. Ctrl-C is made to work where a shell has it ignored: to asyncio
    only that is a wish to stop, other exceptions out of a signal are faults of whatever ran.
    ``nohup`` is respected.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)


class LiveServer:
    """A ``headway serve`` process for the length of a ``with`` block.

    Args:
        args: Arguments of ``headway serve``, without host and port.
        log_path: File that takes the server's output.
        port: ``None`` picks a free one.
        ready_within_s: Seconds until it must answer ``/health``.
        on_wait: Called with the seconds waited, about twice a second, until it is ready.
        env: Added to this process's environment.
        program: What to run instead of ``headway serve``.
    """

    def __init__(
        self,
        args: Sequence[str],
        log_path: Path,
        *,
        port: int | None = None,
        ready_within_s: float = 300.0,
        on_wait: Callable[[float], None] = lambda waited_s: None,
        env: Mapping[str, str] | None = None,
        program: Sequence[str] = HEADWAY_SERVE,
    ) -> None:
        self.port = port if port is not None else free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        self.ready_after_s: float | None = None
        self._command = [*program, *args, "--host", "127.0.0.1", "--port", str(self.port)]
        self._ready_within_s = ready_within_s
        self._on_wait = on_wait
        self._env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the server, while it is there."""
        return self._process.pid if self._process is not None else None

    def __enter__(self) -> Self:
        """Start the server and wait until it answers.

        Raises:
            ServerDied: It ended or did not answer in time.
        """
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("wb") as log:
            # A session of its own: Ctrl-C reaches us, and we stop the server's whole group.
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._env,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def check_alive(self, *, after_failure: bool = False) -> None:
        """Raise :class:`ServerDied` when the process has ended.

        Args:
            after_failure: It failed to answer; a process that is about to end is waited for.
        """
        if self._process is None:
            return
        if after_failure:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(END_WITHIN_S)
        code = self._process.poll()
        if code is not None:
            raise ServerDied(
                f"The server ended by itself (exit code {code}); the last lines of"
                f" {self.log_path} are:\n{self.last_log_lines()}"
            )

    def last_log_lines(self) -> str:
        """Return the end of the server's log."""
        text = self.log_path.read_text(encoding="utf-8", errors="replace")
        return "\n".join(f"  {line}" for line in text.splitlines()[-LAST_LOG_LINES:])

    def stop(self) -> None:
        """Stop the server and everything it started; harmless when it is gone already."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process.pid, signal.SIGINT)
        try:
            process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            pass  # Not swallowed: the next line ends it for certain.
        finally:
            # Children that outlive their parent keep its cores and port busy.
            _signal_group(process.pid, signal.SIGKILL)
            process.wait()

    def _wait_until_ready(self) -> None:
        started_s = time.monotonic()
        while not self._answers():
            self.check_alive()
            waited_s = time.monotonic() - started_s
            if waited_s > self._ready_within_s:
                raise ServerDied(
                    f"The server did not answer within {self._ready_within_s:g} s; the last lines"
                    f" of {self.log_path} are:\n{self.last_log_lines()}"
                )
            self._on_wait(waited_s)
            time.sleep(0.5)
        self.ready_after_s = time.monotonic() - started_s

    def _answers(self) -> bool:
        try:
            with _LOCAL.open(f"{self.url}/health", timeout=2.0) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
