"""An SLO file that may change while the server runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from pathlib import Path

from headway.errors import UserError
from headway.slo import SloBook

logger = logging.getLogger("vllm.headway")

LOOK_EVERY_S = 1.0
"""How often the file is looked at, at most: a change applies about this much later."""


WAIT_S = 0.5
"""How long one request waits for a look, at most, so that it gets what the file says now. A working
disk answers in less than a thousandth of it; the requests behind that one do not wait."""


class WatchedBook:
    """The promises of an SLO file, read again when the file has changed.

    A file that has become wrong, or is gone, changes nothing: the promises that held go on
    holding, and the log says so once. Write the new file elsewhere and rename it into place;
    one that is read half written could be valid and mean something else.

    Args:
        path: The file.
        now_s: The instant of the first reading.

    Raises:
        UserError: It is not a usable SLO file to begin with.
    """

    def __init__(self, path: str | Path, now_s: float) -> None:
        self._path = Path(path)
        self._seen = _signature(self._path)
        self._book = SloBook.load(self._path)
        self._look_at_s = now_s + LOOK_EVERY_S
        self._is_looking = False

    @property
    def latest(self) -> SloBook:
        """The promises as they were last read; nothing is looked at."""
        return self._book

    async def at(self, now_s: float) -> SloBook:
        """Return the promises that hold at *now_s*, a monotonic instant.

        The file is looked at in a thread of its own: a disk that hangs keeps back the file's
        next version, and nobody's request.
        """
        if now_s >= self._look_at_s and not self._is_looking:
            self._look_at_s = now_s + LOOK_EVERY_S
            self._is_looking = True
            loop, has_looked = asyncio.get_running_loop(), asyncio.Event()
            # A daemon: the server ends though its disk does not answer.
            threading.Thread(target=self._look, args=(loop, has_looked), daemon=True).start()
            try:
                async with asyncio.timeout(WAIT_S):
                    await has_looked.wait()
            except TimeoutError:
                logger.warning("The SLO file %s does not answer; its promises stay.", self._path)
        return self._book

    def _look(self, loop: asyncio.AbstractEventLoop, has_looked: asyncio.Event) -> None:
        try:
            self._read_if_changed()
        finally:
            self._is_looking = False
            with contextlib.suppress(RuntimeError):  # The server has ended meanwhile.
                loop.call_soon_threadsafe(has_looked.set)

    def _read_if_changed(self) -> None:
        signature = _signature(self._path)
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._book = SloBook.load(self._path)
        except UserError as error:
            logger.warning("%s The promises read before stay in force.", error)
        else:
            names = sorted(self._book.classes), sorted(self._book.tenants.terms)
            logger.info("Read %s again; its classes: %s; its tenants: %s.", self._path, *names)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when the file does, or ``None`` when it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
