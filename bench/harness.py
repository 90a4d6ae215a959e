"""What the virtual clock costs beside vLLM's own scheduling: one process, one run, a ratio.

    python bench/harness.py [--running 32] [--json FILE]

The harness wraps vLLM's ``schedule()`` and ``update_from_output()``; everything else that a run
spends is overhead. Bound: 0.25 of vLLM's own time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun

OUTPUT_TOKENS = 400
WAVES = 4


class Stopwatch:
    """Sums the CPU seconds of the calls it wraps."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return *call*, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began_s = time.thread_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.total_s += time.thread_time() - began_s

        return timed


def measure(running: int) -> dict[str, float]:
    """Serve four waves of *running* requests by stock vLLM and return what each part cost."""
    engine = Engine(num_blocks=running * 40 + 1, max_num_seqs=running)
    run = VirtualRun(engine, lambda shape: 0.02)
    own = Stopwatch()
    run.scheduler.schedule = own.wrap(run.scheduler.schedule)
    run.scheduler.update_from_output = own.wrap(run.scheduler.update_from_output)
    run.scheduler.add_request = own.wrap(run.scheduler.add_request)
    calls = [VirtualCall(f"r{i}", 0.0, 100, OUTPUT_TOKENS) for i in range(running * WAVES)]
    began_s = time.thread_time()
    run.run(calls)
    total_s = time.thread_time() - began_s
    return {
        "running": running,
        "steps": len(run.steps),
        "steps_per_s": len(run.steps) / total_s,
        "vllm_us_per_step": own.total_s / len(run.steps) * 1e6,
        "overhead": total_s / own.total_s - 1.0,
    }


@click.command()
@click.option("--running", "sizes", multiple=True, type=int, default=(8, 32, 128))
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(sizes: tuple[int, ...], json_path: Path | None) -> None:
    """Print one line a size."""
    measure(8)  # Warm up.
    rows = [measure(size) for size in sizes]
    for row in rows:
        click.echo(json.dumps({k: round(v, 3) for k, v in row.items()}))
    if json_path is not None:
        json_path.write_text(json.dumps({"schema": 1, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
