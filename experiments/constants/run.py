"""Question: what is each constant of the default policy worth?

Each number of docs/reference/constants.md is halved and doubled, one at a time, and the same
requests are served again, on loads that need no trace. Shares near one are varied by what they
lack; of a list every second value is left out, or values are put between. Writes results.json and
results.md beside itself; a stopped run goes on.

    python experiments/constants/run.py            # half an hour of two cores
    python experiments/constants/run.py --only prices
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import json
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import ModuleType
from typing import Any

import click

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
H100 = "llama-3.1-8b@h100"
SHORT = 41_408

LOADS: dict[str, tuple[str, float, int | None, int, str]] = {
    "mixed": ("mixed", 17.0, SHORT, 200, "demote"),
    "retrieval": ("retrieval", 14.0, SHORT, 200, "demote"),
    "long outputs": ("long-outputs", 1.8, SHORT, 100, "demote"),
    "azure-chat": ("azure-chat", 30.0, SHORT, 200, "demote"),
    "mixed, whole cache": ("mixed", 60.0, None, 200, "demote"),
    "retrieval, whole cache, refusing": ("retrieval", 22.0, None, 200, "refuse"),
    "turns": ("turns", 12.0, 60_000, 300, "demote"),
}
"""Workload, requests a second, tokens of KV (all of it), requests, overload."""


class Varied(importlib.abc.Loader):
    """Loads a module with one of its constants changed, before anybody has read it."""

    def __init__(self, inner: Any, name: str, factor: float) -> None:
        self.inner, self.name, self.factor = inner, name, factor

    def exec_module(self, module: ModuleType) -> None:
        """Run the source with a line more below the constant."""
        source = self.inner.get_source(module.__name__)
        lines = source.splitlines(keepends=True)
        node = next(
            n
            for n in ast.parse(source).body
            if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == self.name
        )
        lines.insert(node.end_lineno or 0, f"{self.name} = __varied__({self.name})\n")
        module.__dict__["__varied__"] = lambda value: varied(value, self.factor)
        exec(compile("".join(lines), self.inner.path, "exec"), module.__dict__)


class Finder(importlib.abc.MetaPathFinder):
    """Finds that module, and no other."""

    def __init__(self, module: str, name: str, factor: float) -> None:
        self.module, self.name, self.factor = module, name, factor

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the usual place of the module, with :class:`Varied` to load it."""
        if fullname != self.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        assert spec is not None
        spec.loader = Varied(spec.loader, self.name, self.factor)
        return spec


def varied(value: Any, factor: float) -> Any:
    """Return half or twice a number, or a list half or twice as dense."""
    if isinstance(value, int):
        return max(round(value * factor), 1)
    if isinstance(value, float):
        return 1.0 - (1.0 - value) * factor if 0.5 < value < 1.0 else value * factor
    if isinstance(value, tuple):
        return tuple(1.0 + (one - 1.0) * factor for one in value)  # Shares around one.
    import numpy as np

    return value[::2] if factor < 1 else np.unique(np.append(value, value[:-1] * 3 // 2))


def kept(where: tuple[str, str] | None, factor: float, seeds: Sequence[int]) -> dict[str, float]:
    """Return the share of promises kept on each load, one constant changed."""
    if where is not None:
        sys.meta_path.insert(0, Finder(*where, factor))
    from dataclasses import replace

    from headway.study.spec import Load, Machine, RunSpec
    from headway.study.virtual_run import execute

    found: dict[str, float] = {}
    for name, (workload, rate, kv_tokens, num_requests, overload) in LOADS.items():
        machine = Machine(H100, noise=0.05, prefix_caching=workload == "turns")
        machine = replace(machine, kv_tokens=kv_tokens or machine.kv_tokens)
        spec = RunSpec(
            "headway", "sim", Load(workload, num_requests=num_requests), machine, overload
        )
        runs = [execute(spec.at(rate, seed), keep_steps=False).run for seed in seeds]
        found[name] = sum(run["attainment"] for run in runs) / len(runs)
    return found


def constants() -> list[tuple[str, str]]:
    """Return module and name of every constant on the generated page."""
    sys.path.insert(0, str(ROOT / "scripts" / "docs"))
    import docs_constants

    return [
        (
            "headway." + ".".join(path.relative_to(docs_constants.SOURCE).with_suffix("").parts),
            c.name,
        )
        for path in docs_constants.policy_files()
        for c in docs_constants.constants_in(path.read_text(encoding="utf-8"))
    ]


def markdown(rows: dict[str, dict[str, float]]) -> str:
    """Return the table: what halving and doubling change, in points."""
    base = rows["as it is"]
    lines = [
        "Points of promises kept that halving and doubling change: the mean of all loads, and the",
        "load that changes most.",
        "",
        f"As they are: {', '.join(f'{name} {value:.3f}' for name, value in base.items())}.",
        "",
        "| constant | halved | doubled |",
        "|---|---|---|",
    ]

    def cell(row: dict[str, float] | None) -> str:
        if row is None:
            return "–"
        off = {name: 100 * (row[name] - base[name]) for name in base}
        most = max(off, key=lambda name: abs(off[name]))
        mean = sum(off.values()) / len(off)
        return f"{mean:+.1f}" + (f" ({most} {off[most]:+.1f})" if abs(off[most]) >= 0.05 else "")

    for name in dict.fromkeys(key.rsplit(" ", 1)[0] for key in rows if key != "as it is"):
        lines.append(
            f"| `{name}` | {cell(rows.get(f'{name} 0.5'))} | {cell(rows.get(f'{name} 2'))} |"
        )
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--only", default="", help="Constants whose module and name hold this.")
@click.option("--seeds", default=2, show_default=True)
@click.option("--workers", default=2, show_default=True)
def main(only: str, seeds: int, workers: int) -> None:
    """Vary what is missing and write the table."""
    path = HERE / "results.json"
    rows = json.loads(path.read_text("utf-8")) if path.exists() else {}
    tasks: dict[str, tuple[tuple[str, str] | None, float]] = {"as it is": (None, 1.0)}
    for module, name in constants():
        if only in f"{module}.{name}":
            short = f"{module.removeprefix('headway.')}.{name}"
            tasks |= {f"{short} {factor:g}": ((module, name), factor) for factor in (0.5, 2)}
    missing = {key: task for key, task in tasks.items() if key not in rows}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, max_tasks_per_child=1) as pool:
        futures = {pool.submit(kept, *task, range(seeds)): key for key, task in missing.items()}
        for future in as_completed(futures):
            rows[futures[future]] = future.result()
            click.echo(futures[future])
            path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    ordered = {key: rows[key] for key in tasks if key in rows} if not only else rows
    (HERE / "results.md").write_text(markdown(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
