"""Who may import whom: the core knows no engine, no clock, no socket."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import grimp
import pytest

import headway

ROOT = Path(headway.__file__).parent
PURE = ["policy", "latency", "request.py", "slo.py", "slo_rules.py", "units.py", "errors.py"]
FORBIDDEN = {
    "asyncio", "datetime", "logging", "os", "random", "requests", "aiohttp", "select", "signal",
    "socket", "subprocess", "threading", "time", "torch", "transformers", "vllm",
}  # fmt: skip

LAYERS = [
    ["cli"],
    ["web"],
    ["bench", "study"],
    ["oracle"],
    ["vllm"],
    ["engines"],
    ["workloads", "metrics"],
    ["config"],
    ["policy"],
    ["latency"],
    ["request"],
    ["slo_file"],
    ["slo"],
    ["slo_rules"],
    ["units", "errors"],
]
"""The packages: the top imports from below only."""


def files() -> list[Path]:
    found: list[Path] = []
    for name in PURE:
        path = ROOT / name
        found.extend(sorted(path.rglob("*.py")) if path.is_dir() else [path])
    return found


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_is_pure(path: Path) -> None:
    """No file of the core imports an engine, a clock, a thread or a socket, even locally."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            assert name.split(".")[0] not in FORBIDDEN, f"{path.name}:{node.lineno} {name}"
            assert not name.startswith(("headway.engines", "headway.cli", "headway.bench"))


def test_imports_point_downwards() -> None:
    """A lower layer never imports a higher one."""
    graph = grimp.build_graph("headway", cache_dir=None)
    rank = {name: level for level, names in enumerate(LAYERS) for name in names}
    wrong = []
    for module in graph.modules:
        if module.count(".") == 0:
            continue
        level = rank.get(module.split(".")[1])
        for imported in graph.find_modules_directly_imported_by(module):
            if imported.count(".") == 0 or level is None:
                continue
            other = rank.get(imported.split(".")[1])
            if other is not None and other < level:
                wrong.append(f"{module} imports {imported}")
    assert not wrong


def test_the_core_loads_no_engine() -> None:
    """Importing the policies in a fresh interpreter brings in neither vLLM nor torch."""
    code = (
        "import sys, headway.registry, headway.policy.log\n"
        "bad = {'vllm', 'torch', 'aiohttp', 'headway.engines'} & set(sys.modules)\n"
        "assert not bad, bad\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(ROOT.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
