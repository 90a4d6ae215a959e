"""What a report is made of: summaries and kept runs, read from files and folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.metrics.deciles import DecileRow
from headway.metrics.kept import SCHEMA, KeptRun, is_kept_run, read, read_json

Run = Mapping[str, Any]

SETTINGS = ("engine", "workload", "gpu", "kv_tokens", "overload")
"""What may differ between runs of one policy besides load, seed and step-time band."""

NUMBERS = (
    "rate_rps", "seed", "step_time_band", "num_requests", "attainment", "goodput_rps",
    "duration_s", "lost",
)  # fmt: skip
TABLES = (
    "ttft_s", "tbt_s", "pause_s", "preemptions", "plan_time_us", "per_class", "outcomes",
    "attainment_by_reading",
)  # fmt: skip


OF_A_SUMMARY = ("policy", "bound")
"""What a summary may say of a run that the kept run says otherwise, or not."""


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A kept run on disk: its summary as the report names it, and its spec, flat.

    Steps and requests are read only when they are drawn: a folder may hold hundreds.
    """

    path: Path
    run: Run
    spec: Mapping[str, Any]

    def open(self) -> KeptRun:
        """Return the whole run.

        Raises:
            UserError: It is damaged.
        """
        return read(self.path)


@dataclass(frozen=True, slots=True)
class Material:
    """Everything a report shows.

    Attributes:
        runs: All summaries; with summary files, those of kept runs are among them.
        kept: The runs that can be drawn from the inside.
        sources: Names of the files read.
        num_left_out: Kept runs that the summary files do not name, such as the settings a tuned
            baseline tried and did not choose.
    """

    runs: Sequence[Run]
    kept: Sequence[KeptFile] = ()
    sources: Sequence[str] = ()
    num_left_out: int = 0


def load(paths: Iterable[str | Path]) -> Material:
    """Read summary files, kept runs, and folders of either.

    A run that a summary and a kept run both hold counts once, under the summary's policy name (a
    tuned baseline is a run of ``stock`` under another name).

    Raises:
        UserError: Nothing there, or a file that is neither.
    """
    runs: list[dict[str, Any]] = []
    kept: list[KeptFile] = []
    sources: list[str] = []
    for path, is_named in _files(paths):
        document = read_json(path)
        if is_kept_run(document):
            _check(document["run"], path)
            kept.append(KeptFile(path, document["run"], flat(document.get("spec") or {})))
        elif is_named or _is_summary(document):
            found = _summary_runs(document, path)
            for run in found:
                _check(run, path)
            runs += [dict(run) for run in found]
        else:
            continue
        sources.append(path.name)
    material = _joined(runs, kept, list(dict.fromkeys(sources)))
    if not material.runs:
        raise UserError("There is no run in what was given; run headway simulate first.")
    return material


def _joined(runs: list[dict[str, Any]], kept: list[KeptFile], sources: list[str]) -> Material:
    """Return runs and kept runs matched to each other."""
    if not runs:
        own = {_sameness(file.run): {**_settings(file), **file.run} for file in kept}
        files = [KeptFile(f.path, own[_sameness(f.run)], f.spec) for f in kept]
        return Material(list(own.values()), files, sources)
    by_sameness: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        by_sameness.setdefault(_sameness(run), []).append(run)
    files, num_left_out = [], 0
    for file in kept:
        named = by_sameness.get(_sameness(file.run), [])
        num_left_out += not named
        for run in named:
            run.update({k: v for k, v in _settings(file).items() if run.get(k) is None})
            files.append(KeptFile(file.path, run, file.spec))
    return Material(runs, files, sources, num_left_out)


def flat(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec without its tables, of paths the last part: ``load.source`` is ``source``."""
    found: dict[str, Any] = {}
    for name, value in spec.items():
        if isinstance(value, Mapping) and name != "options":
            found.update(flat(value))
        elif isinstance(value, Mapping):
            found[name] = json.dumps(value) if value else None
        elif isinstance(value, str) and "/" in value:
            found[name] = Path(value).name
        elif value is None or isinstance(value, str | int | float):
            found[name] = value
    return found


def _settings(file: KeptFile) -> dict[str, Any]:
    """Return what the spec of a kept run says of its settings."""
    known = {**file.spec, "workload": file.spec.get("workload") or file.spec.get("source")}
    return {name: known[name] for name in SETTINGS if known.get(name) is not None}


def _sameness(run: Run) -> str:
    """Return a text that is equal for one run under two policy names, with its bound or without."""
    return json.dumps({k: v for k, v in run.items() if k not in OF_A_SUMMARY}, sort_keys=True)


def load_rps(run: Run) -> float:
    """Return the offered load: the rate asked for, else requests per second as recorded."""
    if run.get("rate_rps") is not None:
        return float(run["rate_rps"])
    duration_s = run.get("duration_s")
    return round(float(run.get("num_requests") or 0) / duration_s, 3) if duration_s else 0.0


def band(run: Run) -> float:
    """Return by what share the step times of this run were off; 0 for the plain run."""
    return float(run.get("step_time_band") or 0.0)


def _files(paths: Iterable[str | Path]) -> Iterator[tuple[Path, bool]]:
    """Yield each file once, and whether the user named it rather than its folder."""
    seen: set[Path] = set()
    for path in map(Path, paths):
        if not path.is_dir():
            found = [path]
        else:
            found = sorted(p for p in path.iterdir() if p.name.endswith((".json", ".run.json.gz")))
            if not found:
                raise UserError(f"The folder {path} holds no *.json and no *.run.json.gz file.")
        for one in found:
            if one.absolute() not in seen:
                yield one, one is path
            seen.add(one.absolute())


def _is_summary(document: Any) -> bool:
    return isinstance(document, Mapping) and document.get("schema") == SCHEMA and "runs" in document


def _summary_runs(document: Any, path: Path) -> list[Any]:
    if not isinstance(document, Mapping) or document.get("schema") != SCHEMA:
        raise UserError(
            f"{path} is neither a summary nor a kept run of schema {SCHEMA}, as headway simulate"
            " writes them with --json and --keep."
        )
    runs = document.get("runs")
    if not isinstance(runs, list):
        raise UserError(f"{path} has no list of runs.")
    return runs


def _check(run: Any, path: Path) -> None:
    """Refuse a run whose fields have another type than a summary has."""
    if not isinstance(run, Mapping) or not isinstance(run.get("policy"), str):
        raise UserError(f"{path}: a run must be an object with the name of its policy.")
    for name in NUMBERS:
        value = run.get(name)
        if value is not None and not _is_number(value):
            raise UserError(f"{path}: {name} of a run must be a number or null, not {value!r:.60}.")
    for name in TABLES:
        value = run.get(name)
        if value is not None and not isinstance(value, Mapping):
            raise UserError(f"{path}: {name} of a run must be an object, not {value!r:.60}.")
    deciles = run.get("calibration") or []
    if not isinstance(deciles, list) or not all(map(_is_decile, deciles)):
        raise UserError(f"{path}: calibration of a run must be a list of told, kept and num.")


def _is_decile(row: Any) -> bool:
    return isinstance(row, Mapping) and all(_is_number(row.get(n)) for n in DecileRow._fields)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
