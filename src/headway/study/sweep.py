"""Many runs: side by side over processes, with what is done already not done again."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headway.metrics.define import DEFINITION, definition_of
from headway.metrics.kept import read_json
from headway.study.spec import RunSpec
from headway.study.virtual_run import execute, kept_path

Run = dict[str, Any]
OnDone = Callable[[RunSpec, Run], None]


@dataclass(slots=True)
class FinishedRuns:
    """Finished runs by key; with a file, a line each, so that a stopped sweep can go on.

    Args:
        path: JSONL file that grows with every run; removed by :meth:`close`.
        keep: Folder that receives every run whole; its files count as done too.
    """

    path: Path | None = None
    keep: Path | None = None
    _done: dict[str, Run] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:
                    continue  # The line that was being written when the sweep was stopped.
                self._done[row["key"]] = row["run"]

    def get(self, spec: RunSpec) -> Run | None:
        """Return the finished run of *spec*, or ``None``; with a folder only whole runs count."""
        if self.keep is not None:
            path = kept_path(self.keep, spec)
            return _counted_as_now(read_json(path)["run"]) if path.exists() else None
        return _counted_as_now(self._done.get(spec.key()))

    def add(self, spec: RunSpec, run: Run) -> None:
        """Note a finished run."""
        self._done[spec.key()] = run
        if self.path is not None:
            with self.path.open("a", encoding="utf-8") as out:
                out.write(json.dumps({"key": spec.key(), "run": run}) + "\n")

    def close(self) -> None:
        """The sweep is whole: its notes are not needed any more."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _counted_as_now(run: Run | None) -> Run | None:
    """Return *run* unless a kept promise was something else when it was made."""
    return run if run is not None and definition_of(run) == DEFINITION else None


def run_all(
    specs: Iterable[RunSpec],
    finished: FinishedRuns,
    workers: int | None = None,
    on_done: OnDone = lambda spec, run: None,
) -> dict[str, Run]:
    """Return the summary of every run by its key, running those not *finished* yet.

    Args:
        workers: Processes; as many as there are cores when absent.

    Raises:
        HeadwayError: A run failed; the others that were under way are finished and noted.
    """
    wanted = {spec.key(): spec for spec in specs}
    found: dict[str, Run] = {}
    missing: list[RunSpec] = []
    for key, spec in wanted.items():
        run = finished.get(spec)
        if run is None:
            missing.append(spec)
        else:
            found[key] = run
            on_done(spec, run)

    def take(spec: RunSpec, run: Run) -> None:
        found[spec.key()] = run
        finished.add(spec, run)
        on_done(spec, run)

    # The slowest first: the last ones to end are then short. High rates queue the longest.
    missing.sort(key=lambda spec: -(spec.load.rate_rps or 0.0))
    engine = "vllm" if any(spec.engine == "vllm" for spec in missing) else "sim"
    in_parallel(
        [(one_run, (spec, finished.keep)) for spec in missing],
        workers,
        lambda i, run: take(missing[i], run),
        engine,
    )
    return {key: found[key] for key in wanted}


def in_parallel(
    tasks: Sequence[tuple[Callable[..., Any], tuple[Any, ...]]],
    workers: int | None,
    on_done: Callable[[int, Any], None],
    engine: str,
) -> list[Any]:
    """Return the results of calls in their order; each is told with its position as it ends.

    Args:
        workers: Processes; as many as there are cores when ``None``. One runs right here.
        engine: With ``vllm`` the processes start with it already imported.
    """
    results: list[Any] = [None] * len(tasks)
    workers = min(workers or os.cpu_count() or 1, max(len(tasks), 1))
    if workers == 1:
        for i, (call, args) in enumerate(tasks):
            results[i] = call(*args)
            on_done(i, results[i])
        return results
    context = multiprocessing.get_context("forkserver")
    if engine == "vllm":
        preload = ["headway.engines.vllm.quiet", "headway.engines.vllm.harness"]
        context.set_forkserver_preload(preload)
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        futures: dict[Future[Any], int] = {
            pool.submit(call, *args): i for i, (call, args) in enumerate(tasks)
        }
        try:
            for future in as_completed(futures):
                i = futures[future]
                results[i] = future.result()
                on_done(i, results[i])
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return results


def one_run(spec: RunSpec, keep: Path | None) -> Run:
    """Execute one run and return its summary; with *keep*, write it whole."""
    result = execute(spec, keep_steps=True)
    if keep is not None:
        result.keep(keep)
    return result.run


def mean_attainment(runs: Iterable[Mapping[str, Any]]) -> float:
    """Return the mean attainment of runs, 0 without any."""
    values = [run["attainment"] or 0.0 for run in runs]
    return sum(values) / len(values) if values else 0.0
