"""Whether the working tree decides as another revision does, to the byte.

    .venv/bin/python scripts/same_plans.py main        # a branch, a tag or a commit

Serves the cases below with both trees under the virtual clock and compares every event and every
plan; then replays what the other revision recorded with this one. For changes that should move
code and no decision. Exit code 1 names the first line that differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

SHORT_KV = 28_000
"""Tokens of KV that the loads below are short of."""


SAID_SINCE = re.compile(r',"risk":(null|\{[^}]*\})|,"last_try":1\.0')
"""What older revisions do not say: what speaks against a chunk's promise, which decides nothing,
and that no other server is asked after this one, which they took for granted."""


def _cases() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and what differs from :func:`_spec`'s defaults."""
    everybody = (
        "fcfs sarathi slack accelgen headway cacheopt orca trt_noevict fastgen s3 rlp fastserve"
        " pastfuture qoserve xllm sliding vllm_v0"
    )
    for i, policy in enumerate(everybody.split()):
        yield policy, {"policy": policy, "engine": ("sim", "vllm")[i % 2], "seed": i}
    for policy in ("headway", "accelgen", "cacheopt", "slack"):
        yield f"{policy} refusing", {"policy": policy, "overload": "refuse", "rate": 16.0}
    both: dict[str, dict[str, Any]] = {
        "turns cached": {"source": "turns", "rate": 12.0, "prefix_caching": True},
        "agents cached": {"source": "agents", "rate": 3.0, "prefix_caching": True, "kv": 150_000},
        "swap": {"rate": 14.0, "host_tokens": 100_000},
        "async": {"source": "retrieval", "rate": 5.0, "asynchronous": True, "seed": 3},
    }
    for name, given in both.items():
        for engine in ("sim", "vllm"):
            yield f"{name} ({engine})", {"engine": engine, **given}
    yield "cacheopt swaps", {"policy": "cacheopt", "host_tokens": 100_000, "rate": 10.0}
    yield "groups", {"engine": "vllm", "attention": ("full", "sliding:1024")}
    yield "jobs with an end", {"engine": "vllm", "source": "accelgen-13b", "rate": 2.0}


def _spec(
    policy: str = "headway",
    engine: str = "sim",
    source: str = "mixed",
    rate: float = 8.0,
    seed: int = 0,
    overload: str = "demote",
    kv: int = SHORT_KV,
    **machine: Any,
) -> Any:
    from headway.study.spec import Load, Machine, RunSpec

    load = Load(source, rate_rps=rate, num_requests=80, seed=seed)
    place = Machine("llama-3.1-8b@h100", kv_tokens=kv, noise=0.05, **machine)
    return RunSpec(policy, engine, load, place, overload=overload)  # type: ignore[arg-type]


def _record(folder: Path, names: list[str]) -> None:
    """Serve the cases with the tree on the path; one file of lines a case."""
    from headway.policy import log
    from headway.policy.scheduler import Scheduler

    try:
        from headway.study.virtual_run import execute
    except ModuleNotFoundError:  # The other revision is older than the name.
        from headway.study.run import execute
    try:
        from headway import registry
    except ImportError:  # As above.
        from headway.policy import registry

    lines: list[str] = []
    plan, observe = Scheduler.plan, Scheduler.observe

    def told_plan(core: Any, view: Any, now_s: float) -> Any:
        made = plan(core, view, now_s)
        lines.extend((log.question_line(view, now_s), log.plan_line(made)))
        return made

    def told_observe(core: Any, event: Any) -> None:
        lines.append(log.event_line(event))
        observe(core, event)

    Scheduler.plan, Scheduler.observe = told_plan, told_observe  # type: ignore[method-assign]
    for name, given in _cases():
        if names and name not in names:
            continue
        if given.get("policy", registry.DEFAULT) not in registry.names():
            print(f"{name}: not compared, the other revision has no such policy", flush=True)
            continue
        lines.clear()
        execute(_spec(**given))
        (folder / f"{name}.jsonl").write_text("\n".join(line.strip() for line in lines))


def _replay(folder: Path, names: list[str]) -> None:
    """Replay the recordings in *folder* with the tree on the path.

    The simulator's cases only: what vLLM's scheduler is told of the machine is no event.
    """
    from headway import registry
    from headway.policy.log import replay

    for name, given in _cases():
        if (names and name not in names) or given.get("engine", "sim") != "sim":
            continue
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            continue
        spec = _spec(**given)
        core = registry.build(spec.policy, overload=spec.overload)
        lines = path.read_text().splitlines()
        plans = [line for line in lines if line.startswith('{"plan"')]
        _compare(f"{name}, replayed", [line.strip() for line in replay(lines, core)], plans)


def _compare(name: str, ours: list[str], theirs: list[str]) -> None:
    ours, theirs = ([SAID_SINCE.sub("", line) for line in lines] for lines in (ours, theirs))
    for at, (one, other) in enumerate(zip_longest(ours, theirs)):
        if one != other:
            sys.exit(f"{name}: line {at + 1} differs\n  now   {one}\n  then  {other}")
    digest = hashlib.sha256("\n".join(ours).encode()).hexdigest()[:12]
    print(f"{name}: {len(ours)} lines, {digest}", flush=True)


def _told(path: Path) -> list[str]:
    """Return events and plans; what a view shows may grow without changing either."""
    return [line for line in path.read_text().splitlines() if not line.startswith('{"view"')]


def _run(tree: Path, folder: Path, names: list[str], task: str = "record") -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    env = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONHASHSEED": "0"}
    command = [sys.executable, __file__, "--task", task, str(folder), json.dumps(names)]
    return subprocess.Popen(command, env=env, text=True)


def main() -> None:
    """Compare; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("revision")
    parser.add_argument("names", nargs="?", default="[]", help=argparse.SUPPRESS)
    parser.add_argument("--task", choices=("record", "replay"), help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", default=[], help="one case by its name")
    given = parser.parse_args()
    if given.task:
        {"record": _record, "replay": _replay}[given.task](
            Path(given.revision), json.loads(given.names)
        )
        return
    with tempfile.TemporaryDirectory() as scratch:
        then, now = Path(scratch, "then"), Path(scratch, "now")
        other = Path(scratch, "tree")
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-f", str(other), given.revision], check=True)
        try:
            runs = [_run(other, then, given.only), _run(ROOT, now, given.only)]
            if sum(run.wait() for run in runs):
                sys.exit("a tree could not serve the cases")
        finally:
            subprocess.run([*git, "remove", "--force", str(other)], check=True)
        for path in sorted(then.iterdir()):
            _compare(path.stem, _told(now / path.name), _told(path))
        if _run(ROOT, then, given.only, "replay").wait():
            sys.exit(1)


if __name__ == "__main__":
    main()
