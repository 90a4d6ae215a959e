"""A kept run: one virtual run with every step and every request, as ``simulate --keep`` writes it.

One gzipped JSON object: ``spec`` (what was asked for), ``run`` (its summary), ``timeline`` (one
list a column, one entry a step) and ``requests``. Instants are seconds on the run's clock.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headway.errors import UserError
from headway.metrics import define
from headway.slo import AIMS, Slo
from headway.slo_fields import aims_in
from headway.slo_rules import SPANS

FloatArray = npt.NDArray[np.float64]

SCHEMA = 1
PHASES = ("queued", "prefill", "decode", "preempted", "swapped")
LOST = ("preempted", "swapped")
"""Phases of a request that lost its place; of ``swapped`` the host keeps the KV."""

KEPT_FIELDS = (*SPANS, *AIMS)
"""What is kept of a promise beside its class."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """The steps of a run in order, one array a column; all of one length.

    Attributes:
        predicted_s: The mean the policy expected; 0 where nobody predicted.
        promised_s: The bound the policy planned with; 0 where nobody predicted.
        held_tokens: Whole KV blocks in use, in tokens.
        reserved_tokens: What running requests are predicted to need beyond what they hold.
        capacity_tokens: The KV cache; 0 where it is not known.
    """

    begins_s: FloatArray
    ends_s: FloatArray
    predicted_s: FloatArray
    promised_s: FloatArray
    num_prefill_tokens: FloatArray
    num_decodes: FloatArray
    num_running: FloatArray
    num_waiting: FloatArray
    held_tokens: FloatArray
    reserved_tokens: FloatArray
    capacity_tokens: int = 0

    def __len__(self) -> int:
        return len(self.begins_s)

    @property
    def spans_s(self) -> FloatArray:
        """How long each step took."""
        return self.ends_s - self.begins_s

    @property
    def planned_s(self) -> FloatArray:
        """What the policy planned each step to take at most; ``inf`` where it planned no bound."""
        return np.where(
            define.is_bounded(self.predicted_s, self.promised_s), self.promised_s, np.inf
        )

    @property
    def free_tokens(self) -> FloatArray:
        """KV that nobody holds; ``inf`` where the capacity is not known."""
        if not self.capacity_tokens:
            return np.full(len(self), np.inf)
        return np.maximum(self.capacity_tokens - self.held_tokens, 0.0)

    @property
    def lent_tokens(self) -> FloatArray:
        """Reserved KV that is in somebody else's use now: what free KV does not cover."""
        return np.maximum(self.reserved_tokens - self.free_tokens, 0.0)

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> Timeline:
        """Read the ``timeline`` object; see :func:`read` for errors."""
        columns = {}
        for field in fields(cls)[:-1]:
            column = np.asarray(table[field.name], dtype=float)
            if column.ndim != 1 or not np.isfinite(column).all():
                raise ValueError(f"timeline.{field.name} is not a list of numbers")
            if field.name not in ("begins_s", "ends_s") and (column < 0).any():
                raise ValueError(f"timeline.{field.name} has a negative number")
            columns[field.name] = column
        if len({len(column) for column in columns.values()}) != 1:
            raise ValueError("the lists of the timeline differ in length")
        if (np.diff(columns["begins_s"]) < 0).any():
            raise ValueError("the steps of the timeline are not in order")
        if (columns["ends_s"] < columns["begins_s"]).any():
            raise ValueError("a step of the timeline ends before it begins")
        return cls(**columns, capacity_tokens=int(table.get("capacity_tokens") or 0))


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """One offered request: its promise, what its client saw, and when each phase began.

    ``ended_at_s`` is when its client knew the outcome; ``None`` where the run does not tell.
    ``chance`` is what its promise was told when it first started; ``None`` where nothing was.
    """

    id: str
    slo: Slo
    arrived_at_s: float
    emitted_at_s: tuple[float, ...]
    outcome: str
    attained: bool
    phases: tuple[tuple[float, str], ...]
    num_prompt_tokens: int
    num_preemptions: int = 0
    ended_at_s: float | None = None
    chance: float | None = None

    @property
    def last_seen_at_s(self) -> float:
        """The last instant the run tells anything about this request."""
        known_s = [self.arrived_at_s, *self.emitted_at_s[-1:], *(at_s for at_s, _ in self.phases)]
        return max(known_s if self.ended_at_s is None else [*known_s, self.ended_at_s])

    @classmethod
    def parse(cls, row: Mapping[str, Any], definition: str = define.DEFINITION) -> KeptRequest:
        """Read one entry of ``requests``; see :func:`read` for errors.

        What was promised before there was a pause allowed any: so it is read.
        """
        written = row.get("slo") or {}
        promised = {name: value for name, value in written.items() if name in SPANS}
        if definition == define.PLAIN and promised.get("tbt_s") is not None:
            promised["pause_s"] = math.inf
        elif promised.get("pause_s") is not None:
            promised["pause_s"] = float(promised["pause_s"])
        phases = tuple((float(at_s), str(name)) for at_s, name in row.get("phases") or ())
        for _, name in phases:
            if name not in PHASES:
                raise ValueError(f"phase {name!r:.60} is not one of {', '.join(PHASES)}")
        if any(before[0] > after[0] for before, after in pairwise(phases)):
            raise ValueError(f"the phases of request {row['id']!r:.60} are not in order")
        instants_s = (float(row["arrived_at_s"]), *(float(at_s) for at_s in row["emitted_at_s"]))
        if any(before_s > after_s for before_s, after_s in pairwise(instants_s)):
            raise ValueError(
                f"the tokens of request {row['id']!r:.60} are not in order, or came before it"
            )
        return cls(
            id=str(row["id"]),
            slo=Slo(
                **promised,
                **aims_in(written, "slo"),
                class_name=str(row.get("slo_class") or "none"),
            ),
            arrived_at_s=instants_s[0],
            emitted_at_s=instants_s[1:],
            outcome=str(row["outcome"]),
            attained=bool(row["attained"]),
            phases=phases,
            num_prompt_tokens=int(row["num_prompt_tokens"]),
            num_preemptions=int(row.get("num_preemptions") or 0),
            ended_at_s=None if row.get("ended_at_s") is None else float(row["ended_at_s"]),
            chance=None if row.get("chance") is None else float(row["chance"]),
        )


@dataclass(frozen=True, slots=True)
class KeptRun:
    """A kept run, checked."""

    spec: Mapping[str, Any]
    run: Mapping[str, Any]
    timeline: Timeline
    requests: tuple[KeptRequest, ...]

    @classmethod
    def parse(cls, document: Any, source: str = "The kept run") -> KeptRun:
        """Read a kept run from its JSON document.

        Raises:
            UserError: It is not one.
        """
        if not is_kept_run(document):
            raise UserError(
                f"{source} is not a kept run: it needs schema {SCHEMA} and the fields run,"
                " timeline and requests, as simulate --keep writes them."
            )
        try:
            return cls(
                spec=dict(document.get("spec") or {}),
                run=dict(document["run"]),
                timeline=Timeline.parse(document["timeline"]),
                requests=tuple(
                    KeptRequest.parse(row, define.definition_of(document["run"]))
                    for row in document["requests"]
                ),
            )
        except KeyError as error:
            raise UserError(f"{source} is not a whole kept run: {error} is missing.") from None
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"{source} is not a kept run: {error}.") from None


def is_kept_run(document: Any) -> bool:
    """Whether a JSON document claims to be a kept run, right or wrong inside."""
    return (
        isinstance(document, Mapping)
        and document.get("schema") == SCHEMA
        and {"run", "timeline", "requests"} <= document.keys()
    )


def read_json(path: str | Path) -> Any:
    """Return the JSON document in a file, gzipped or not.

    Raises:
        UserError: The file cannot be read or holds no JSON.
    """
    try:
        data = Path(path).read_bytes()
        text = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path} is a damaged gzip file.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} holds no JSON.") from None


def read(path: str | Path) -> KeptRun:
    """Return the kept run in a file.

    Raises:
        UserError: The file cannot be read, or holds no kept run.
    """
    return KeptRun.parse(read_json(path), str(path))
