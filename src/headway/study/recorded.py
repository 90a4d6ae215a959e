"""A recorded run as a workload: who came when, how long it really was, what it was promised.

A recording is what a live server writes with ``--record``; a kept run is what ``simulate --keep``
writes. Requests whose answer did not run to its end (refused, hung up, cut by a gap) get the
median length of those of their class that did; ``num_guessed`` says how many. Prompt tokens that
were found in the prefix cache are taken off the prompt: they cost neither compute nor KV of
their own, and which requests share them is not recorded.
"""

from __future__ import annotations

import gzip
import statistics
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway import registry
from headway.errors import UserError
from headway.latency.online import OnlineModel
from headway.latency.roofline import Roofline
from headway.metrics import kept
from headway.policy.log import parse_event, plan_line
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import NO_PROMISE
from headway.study.history import History, RecordedRequest
from headway.study.recorded_book import document_of, toml_of
from headway.workloads.record_files import RunFiles, rows, run_of
from headway.workloads.schema import SLO_FIELDS, WorkloadRequest, write_jsonl

UNKNOWN_LENGTH = 128
"""Tokens assumed when no request of a recording ran to its end."""

GZIP_MARK = b"\x1f\x8b"
START_MARKS = (b'{"event"', b'{"start"', b'{"view"', b'{"gap"')
"""First bytes of a recording, once unpacked; no trace begins so."""

KEPT_RUN_MARK = b'{"schema"'
"""First bytes of every kept run, unpacked; no line of a recording begins so."""


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """The requests of a recorded run, from time 0, and what each was promised.

    Attributes:
        happened: The summary of the recorded run itself.
        history: All else that a recording tells; ``None`` for a kept run.
        kept_spec: What was asked of a kept run; empty for a recording.
        book: The document of an SLO file under which they are what they were.
    """

    requests: tuple[WorkloadRequest, ...]
    num_guessed: int
    happened: dict[str, Any]
    history: History | None = None
    kept_spec: dict[str, Any] | None = None
    num_found_tokens: int = 0
    book: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> Path:
        """Write the workload into *folder* as ``recorded.jsonl`` and return its path.

        Beside it ``slo.toml`` gets the SLO file that goes with it.
        """
        (folder / "slo.toml").write_text(toml_of(self.book), encoding="utf-8")
        path = folder / "recorded.jsonl"
        write_jsonl(path, self.requests)
        return path


def read(path: str | Path) -> RecordedRun:
    """Return the workload of a recording (a file or a folder), or of a kept run.

    Raises:
        UserError: It is neither, or holds no request.
    """
    run = run_of(Path(path))
    if len(run.paths) == 1 and _is_kept(run.paths[0]):
        return _of_kept(run.paths[0])
    return of_recording(run, str(path))


def of_recording(run: RunFiles, where: str) -> RecordedRun:
    """Return the workload of one recording; *where* names it in errors.

    Raises:
        UserError: It is none, or holds no request.
    """
    history = History.of(rows(run))
    seen = list(history.requests.values())
    if not seen:
        raise UserError(f"{where} holds no requests.")
    found = sum(one.num_found_tokens for one in seen)
    num_guessed = sum(not one.is_whole for one in seen)
    happened = history.as_it_happened()
    book = document_of(one.slo for one in seen)
    return RecordedRun(workload(seen), num_guessed, happened, history, None, found, book)


def _is_kept(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            if file.read(len(GZIP_MARK)) != GZIP_MARK:
                return False
        with gzip.open(path, "rb") as unpacked:
            return unpacked.read(len(KEPT_RUN_MARK)) == KEPT_RUN_MARK
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise UserError(f"{path} is a damaged gzip file.") from None
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def _of_kept(path: Path) -> RecordedRun:
    run = kept.read(path)
    seen = list(_seen_in(run.requests))
    if not seen:
        raise UserError(f"{path} holds no requests.")
    num_guessed = sum(not one.is_whole for one in seen)
    book = document_of(one.slo for one in seen)
    return RecordedRun(
        workload(seen), num_guessed, dict(run.run), kept_spec=dict(run.spec), book=book
    )


def _seen_in(requests: Iterable[kept.KeptRequest]) -> Iterator[RecordedRequest]:
    for request in requests:
        seen = RecordedRequest(
            request.id, request.slo, request.arrived_at_s, request.num_prompt_tokens
        )
        seen.emitted_at_s = list(request.emitted_at_s)
        seen.reason = "stopped" if request.outcome == "finished" else request.outcome
        yield seen


def workload(seen: Sequence[RecordedRequest]) -> tuple[WorkloadRequest, ...]:
    """Return requests as a workload that begins at 0 with the first of them."""
    lengths: dict[str, list[int]] = {}
    for one in seen:
        if one.is_whole and one.emitted_at_s:
            lengths.setdefault(one.slo.class_name, []).append(len(one.emitted_at_s))
    known = [length for group in lengths.values() for length in group]
    ordered = sorted(seen, key=lambda one: (one.arrived_at_s, one.id))
    first_s = ordered[0].arrived_at_s
    requests = []
    for one in ordered:
        length = len(one.emitted_at_s)
        if not one.is_whole:
            length = max(length, _median(lengths.get(one.slo.class_name) or known))
            if one.max_output_tokens is not None:
                length = min(length, one.max_output_tokens)
        requests.append(
            WorkloadRequest(
                id=one.id,
                arrived_at_s=round(one.arrived_at_s - first_s, 6),
                num_prompt_tokens=max(one.num_prompt_tokens - one.num_found_tokens, 1),
                num_output_tokens=max(length, 1),
                slo_class=one.slo.class_name,
                **{column: getattr(one.slo, name) for column, name in SLO_FIELDS.items()},
                # A weight said beside no promise would make a class of its own, "custom".
                weight=None if one.slo.class_name == NO_PROMISE.class_name else one.slo.weight,
                max_output_tokens=one.max_output_tokens,
                tenant=one.slo.tenant or None,
            )
        )
    return tuple(requests)


def _median(lengths: Sequence[int]) -> int:
    return int(statistics.median(lengths)) if lengths else UNKNOWN_LENGTH


def core_of(start: Mapping[str, Any]) -> Scheduler:
    """Return the policy core as it was when a recording began, to replay it bit for bit.

    Args:
        start: What the recording says of itself.

    Raises:
        UserError: Its policy or an option is not known to this version.
    """
    return registry.build(
        start["policy"],
        overload=start["overload"],
        options=start["options"],
        latency=OnlineModel(Roofline(**start["roofline"])),
    )


def verify(run: RunFiles) -> int:
    """Let a fresh core hear a recording; return how many plans it makes, the same to the byte.

    Raises:
        UserError: A plan differs, lines are missing, or the recording says nothing of its core.
    """
    core: Scheduler | None = None
    planned, count = "", 0
    for where, row in rows(run):
        if "start" in row:
            core = core or core_of(row["start"])
        elif core is None:
            raise UserError(f"{where}: a recording that replays bit for bit says how it began.")
        elif run.numbers[0] != 1 or "gap" in row:
            raise UserError(f"{where}: lines are missing before this, so no later plan can be.")
        elif "event" in row:
            core.observe(parse_event(row))
        elif "view" in row:
            planned = plan_line(core.plan(EngineView(**row["view"]), row["now_s"]))
        elif "plan" in row:
            count += 1
            if plan_line(row["plan"]) != planned:
                raise UserError(f"{where}: this is plan {count}, and a fresh core plans otherwise.")
    return count


def is_recording(path: Path) -> bool:
    """Whether *path* is a recording or a kept run, rather than a trace."""
    if path.is_dir() or not path.exists():  # A run's name within its folder is no file.
        return path.is_dir() or bool(run_of(path).name)
    try:
        with path.open("rb") as file:
            beginning = file.read(16)
        if not beginning.startswith(GZIP_MARK):
            return beginning.startswith(START_MARKS)
        with gzip.open(path, "rb") as unpacked:
            return unpacked.read(16).startswith((*START_MARKS, KEPT_RUN_MARK))
    except (OSError, EOFError, zlib.error):
        return False  # Whoever reads it says why it cannot be read.


def for_slo_file(requests: Iterable[WorkloadRequest]) -> Iterator[WorkloadRequest]:
    """Yield *requests* with their classes by name alone: an SLO file says what those promise.

    A promise of no class stays beside the file's default; who had none gets the default.
    """
    for request in requests:
        if request.slo_class == "custom":
            yield replace(request, slo_class=None)
        else:
            name = None if request.slo_class == "none" else request.slo_class
            nothing: dict[str, Any] = dict.fromkeys(SLO_FIELDS)
            yield replace(request, slo_class=name, weight=None, **nothing)
