"""The server's side of a shadow policy: something to read, and the process that reads it.

The comparing itself is :mod:`headway.study.shadow`, in a process of its own.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from typing import Any

from headway.config import Settings
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.errors import UserError

RECORD_GIB = 0.25
"""Bound of a recording that only the shadow reads: it wants minutes."""

_started: list[subprocess.Popen[bytes]] = []
"""Processes that live as long as this one holds the other end of their input."""


def see_to_recording(settings: dict[str, Any]) -> None:
    """Put a folder to record into *settings*; one nobody asked for goes with this process.

    Raises:
        UserError: The recording is one file; the shadow needs the newest of several.
    """
    if settings.get("record") is None:
        folder = tempfile.mkdtemp(prefix="headway-shadow-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        settings.update(record=folder, record_gib=RECORD_GIB)
    elif str(settings["record"]).endswith(".jsonl"):
        raise UserError("--shadow needs a folder to record into, not one .jsonl file.")


def start(settings: Settings, policy: str) -> None:
    """Start the process that compares; it ends when this one does."""
    assert settings.record is not None
    command = [sys.executable, "-m", "headway.study.shadow", settings.record, policy]
    command += ["--channel", os.environ[CHANNEL_VARIABLE]]
    # One thread: its share of the machine is counted in cores.
    alone = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **alone}
    _started.append(subprocess.Popen(command, stdin=subprocess.PIPE, env=environment))
