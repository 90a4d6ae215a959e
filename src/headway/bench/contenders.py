"""Who runs in the demo and in ``experiments/live``, and on what server."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.errors import HeadwayError

MODEL = "smollm2"

SERVER_ARGS = (
    "--num-gpu-blocks-override", "160", "--block-size", "32", "--max-model-len", "4096",
)  # fmt: skip
"""The same for every contender: 160 × 32 = 5,120 tokens of KV cache, small enough to be fought
over by a dozen chats and a few documents."""

DEMO_LOAD = 0.9
"""Share of the engine's time the demo's requests need, by the machine's own speed."""
DEMO_REQUESTS = 36
DEMO_SEED = 1

STOCK_BEST_FILE = Path(__file__).with_name("stock_best.json")

CHAT_FIRST = {"chat": 0, "batch": 1, "summary": 2}
"""Priorities for vLLM's ``--scheduling-policy priority``: the least patient class goes first."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One server setting to compare.

    Attributes:
        key: Name in ``summary.json`` and in result files.
        title: Name for people.
        policy: ``headway serve --policy``.
        args: Arguments of the server beyond those all contenders share.
        priority_by_class: What its clients send as vLLM's ``priority``.
    """

    key: str
    title: str
    policy: str
    args: tuple[str, ...] = ()
    priority_by_class: Mapping[str, int] = field(default_factory=dict)

    @property
    def serve_args(self) -> list[str]:
        """Arguments of ``headway serve`` for this contender, without host and port."""
        return [MODEL, "--policy", self.policy, *SERVER_ARGS, *self.args]

    @property
    def command(self) -> str:
        """The command a person would type."""
        return shlex.join(["headway", "serve", *self.serve_args])


def stock() -> Contender:
    """Return vLLM as it comes."""
    return Contender("stock", "stock vLLM", "stock")


def stock_best(path: Path = STOCK_BEST_FILE) -> Contender:
    """Return vLLM with the setting that the sweep of ``experiments/live`` found best.

    Raises:
        HeadwayError: The file that names the setting is damaged.
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        args = tuple(str(arg) for arg in found["server_args"])
        priorities = {str(name): int(value) for name, value in found["priority_by_class"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HeadwayError(
            f"{path.name} must name server_args and priority_by_class ({error}); run"
            " experiments/live/run.py --write-stock-best to make it anew."
        ) from None
    return Contender("stock_best", "stock vLLM, best setting", "stock", args, priorities)


def headway() -> Contender:
    """Return Headway, with no setting at all: every request brings its promise."""
    return Contender("headway", "Headway", "headway")


def everyone() -> list[Contender]:
    """Return the demo's contenders, in the order they run."""
    return [stock(), stock_best(), headway()]
