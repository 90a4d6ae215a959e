"""A recorded run as a workload: who came when, how long it really was, what it was promised.

A recording is what a live server writes with ``"record"`` among its Headway settings; a kept
run is what ``simulate --keep`` writes. Requests whose answer did not run to its end (refused,
hung up) get the median length of those of their class that did; ``num_guessed`` says how many.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.metrics import kept
from headway.policy.events import Arrived, Finished, StepDone
from headway.policy.log import events_in
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest, json_lines, write_jsonl

UNKNOWN_LENGTH = 128
"""Tokens assumed when no request of a recording ran to its end."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """The requests of a recorded run, from time 0, and what each was promised."""

    requests: tuple[WorkloadRequest, ...]
    num_guessed: int

    def save(self, folder: Path) -> Path:
        """Write the workload into *folder* as ``recorded.jsonl`` and return its path."""
        path = folder / "recorded.jsonl"
        write_jsonl(path, self.requests)
        return path


@dataclass(slots=True)
class _Seen:
    slo: Slo
    arrived_at_s: float
    num_prompt_tokens: int
    max_output_tokens: int | None = None
    num_output_tokens: int = 0
    is_whole: bool = False


def read(path: str | Path) -> Recorded:
    """Return the workload of a recording (JSONL) or a kept run (gzipped JSON).

    Raises:
        UserError: The file is neither, or holds no request.
    """
    with _opened(path) as file:
        is_kept = file.read(2) == b"\x1f\x8b"
    seen = dict(_of_kept(path)) if is_kept else _of_events(events_in(json_lines(path)))
    if not seen:
        raise UserError(f"{path} holds no requests.")
    return _workload(seen)


def _opened(path: str | Path) -> Any:
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None


def _of_events(events: Iterable[Any]) -> dict[str, _Seen]:
    seen: dict[str, _Seen] = {}
    for event in events:
        if isinstance(event, Arrived):
            seen[event.request_id] = _Seen(
                event.slo, event.arrived_at_s, event.num_prompt_tokens, event.max_output_tokens
            )
        elif isinstance(event, StepDone):
            for request_id, count in event.num_new_tokens.items():
                if request_id in seen:
                    seen[request_id].num_output_tokens += count
        elif isinstance(event, Finished) and event.request_id in seen:
            seen[event.request_id].is_whole = event.reason in ("stopped", "length")
    return seen


def _of_kept(path: str | Path) -> Iterator[tuple[str, _Seen]]:
    for request in kept.read(path).requests:
        is_whole = request.outcome == "finished"
        count = len(request.emitted_at_s)
        one = _Seen(request.slo, request.arrived_at_s, request.num_prompt_tokens)
        yield request.id, replace(one, num_output_tokens=count, is_whole=is_whole)


def _workload(seen: dict[str, _Seen]) -> Recorded:
    lengths: dict[str, list[int]] = {}
    for one in seen.values():
        if one.is_whole and one.num_output_tokens:
            lengths.setdefault(one.slo.class_name, []).append(one.num_output_tokens)
    known = [length for group in lengths.values() for length in group]
    ordered = sorted(seen.items(), key=lambda item: (item[1].arrived_at_s, item[0]))
    first_s = ordered[0][1].arrived_at_s
    requests = []
    for name, one in ordered:
        length = one.num_output_tokens
        if not one.is_whole:
            length = max(length, _median(lengths.get(one.slo.class_name) or known))
            if one.max_output_tokens is not None:
                length = min(length, one.max_output_tokens)
        requests.append(
            WorkloadRequest(
                id=name,
                arrived_at_s=round(one.arrived_at_s - first_s, 6),
                num_prompt_tokens=one.num_prompt_tokens,
                num_output_tokens=max(length, 1),
                slo_class=one.slo.class_name,
                ttft_slo_s=one.slo.ttft_s,
                tbt_slo_s=one.slo.tbt_s,
                jct_slo_s=one.slo.jct_s,
                weight=one.slo.weight,
                max_output_tokens=one.max_output_tokens,
            )
        )
    return Recorded(tuple(requests), sum(not one.is_whole for one in seen.values()))


def _median(lengths: Sequence[int]) -> int:
    return int(statistics.median(lengths)) if lengths else UNKNOWN_LENGTH


def classes_toml(requests: Sequence[WorkloadRequest]) -> str:
    """Return an SLO file that names the classes of *requests* and promises nothing itself.

    Each request carries its own promise; the file only says that the names are known.
    """
    names = sorted({request.slo_class or "none" for request in requests})
    return "".join(f"[classes.{json.dumps(name)}]\n" for name in names)
