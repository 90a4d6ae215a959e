"""The file in which error budgets outlive the server: read at its start, renamed into place.

The scheduler's process writes it, from a thread of its own since a disk may hang: one small file
every ten seconds, so that a killed server forgets no more than that.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from threading import Thread

import msgspec

from headway.config import Settings
from headway.errors import UserError
from headway.metrics.budgets import ErrorBudgets

logger = logging.getLogger("vllm.headway")

EVERY_S = 10.0
"""Seconds between two writes at least: what a server that is killed forgets."""

CLOSE_WITHIN_S = 5.0
"""How long the end of the server waits for a disk that does not move."""


class BudgetFile:
    """Keeps *budgets* in a file.

    Args:
        path: Where. What it holds is taken in; if it is no such file it is put aside, with a
            warning, and the budgets begin anew.
        budgets: Nothing may have been counted yet.
        now_unix_s: When they are read.
    """

    def __init__(self, path: Path, budgets: ErrorBudgets, now_unix_s: float) -> None:
        self._path, self._budgets = path, budgets
        self._write_at_s = now_unix_s + EVERY_S
        self._thread: Thread | None = None
        self._is_failing = False
        self._read(now_unix_s)

    def _read(self, now_unix_s: float) -> None:
        try:
            self._budgets.restore(json.loads(self._path.read_bytes()), now_unix_s)
        except FileNotFoundError:
            return
        except OSError as error:
            self._warn(f"Cannot read the budgets {self._path}: {error.strerror}.")
        except (ValueError, RecursionError) as error:
            aside = self._path.with_name(self._path.name + ".broken")
            self._warn(f"{self._path} holds no budgets ({error}); it is kept as {aside.name}.")
            try:
                os.replace(self._path, aside)
            except OSError as failed:
                self._warn(f"Cannot rename {self._path}: {failed.strerror}.")

    def _warn(self, sentence: str) -> None:
        logger.warning("%s Error budgets begin anew.", sentence)

    def tell(self, now_unix_s: float) -> None:
        """Write, if the last time is long enough ago; never waits for the disk."""
        if now_unix_s < self._write_at_s or (self._thread and self._thread.is_alive()):
            return
        self._write_at_s = now_unix_s + EVERY_S
        data = self._encoded(now_unix_s)
        self._thread = Thread(target=self._write, args=(data,), name="headway-budgets", daemon=True)
        self._thread.start()

    def close(self, now_unix_s: float) -> None:
        """Write what there is."""
        if self._thread is not None:
            self._thread.join(CLOSE_WITHIN_S)
            if self._thread.is_alive():
                logger.warning("The budgets %s are not written: its disk hangs.", self._path)
                return
        self._write(self._encoded(now_unix_s))

    def _encoded(self, now_unix_s: float) -> bytes:
        return msgspec.json.encode(self._budgets.state(now_unix_s))

    def _write(self, data: bytes) -> None:
        part = self._path.with_name(f"{self._path.name}.{os.getpid()}.part")
        try:
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "wb") as out:
                out.write(data)
                out.flush()
                os.fsync(fd)
            os.replace(part, self._path)
            self._is_failing = False
        except OSError as error:
            if not self._is_failing:  # Once, until it works again.
                logger.warning("Cannot write the budgets %s: %s.", self._path, error.strerror)
            self._is_failing = True


def path_of(budgets: str, engine: str) -> Path:
    """Return the file of one scheduler of several: they count apart, each in its own."""
    path = Path(budgets)
    return path if engine == "0" else path.with_name(f"{path.stem}-e{engine}{path.suffix}")


def check_budgets(settings: Settings) -> None:
    """See that the budgets can be kept; make their folder, for this user alone.

    Raises:
        UserError: They cannot.
    """
    if settings.budgets is None:
        return
    path = Path(settings.budgets)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise UserError(f"Cannot keep the budgets in {path}: {error.strerror}.") from None
    if path.is_dir():
        raise UserError(f"{path} is a folder; --budgets names the file to keep budgets in.")
    may_write = os.access(path.parent, os.W_OK | os.X_OK)
    if not may_write or (path.exists() and not os.access(path, os.R_OK)):
        raise UserError(f"Cannot keep the budgets in {path}: it cannot be read and written.")
