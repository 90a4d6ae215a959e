"""What a decision costs: our schedule() + update_from_output() over stock's, same run.

Question: how much time does Headway add to a step of vLLM's own scheduler?
Command:  make bench   (or: python bench/plan.py --json bench/plan.json)
Method:   the real scheduler classes under the virtual clock, no model; R requests decode and
          W wait; stock and ours alternate in blocks of steps, and the medians are compared.
          In the cached rows prefix caching is on, every prompt has 30,000 tokens, and those who
          wait will find all but 500 of them in the cache. In the rows with groups the model has
          one layer group of full attention and five of a sliding window, as Gemma 3 has.
Ends in one JSON line.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

from stepping import Timed, cells, fill, options, report

from headway.engines.attention_kinds import FULL
from headway.engines.virtual import VirtualCall
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.latency.model import StepShape

OUTPUT_TOKENS = 4000

GROUPS = ("full", *["sliding:1024"] * 5)
"""Layer groups of the rows with groups."""

NUM_DOCUMENTS = 16
DOCUMENT_TOKENS, QUESTION_TOKENS = 29_500, 500
"""A cached prompt is one of the documents and a question of its own."""


def truth(shape: StepShape) -> float:
    """Steps of a small model on a large GPU; only the virtual clock sees it."""
    return 0.006 + 2e-5 * shape.num_prefill_tokens + 3e-6 * shape.num_decodes


def loaded(
    policy: str,
    running: int,
    waiting: int,
    promised: bool,
    kv_is_short: bool = False,
    groups: tuple[str, ...] = FULL,
) -> VirtualRun:
    """Return a run in which *running* requests decode and *waiting* ones queue.

    They queue because no more may run at once, or, with *kv_is_short*, because KV is what lacks:
    then admission is decided anew in every step.
    """
    each = 24 if kv_is_short else 300
    windows = 65 * (len(groups) - 1)  # Blocks of a window of 1,024 tokens, begun anywhere.
    engine = Engine(
        num_blocks=running * (each + windows) + 1000 * (not kv_is_short),
        block_size=16,
        max_num_batched_tokens=8192,
        max_num_seqs=4 * running if kv_is_short else running,
        groups=groups,
        headway=None if policy == "stock" else {"policy": policy},
    )
    xargs: dict[str, Any] = {"slo_ttft_ms": 60000, "slo_tbt_ms": 100} if promised else {}
    queued = {"slo_ttft_ms": 3.6e6, "slo_tbt_ms": 100} if promised else {}
    return fill(
        VirtualRun(engine, truth),
        (VirtualCall(f"r{i}", 0.0, 64, OUTPUT_TOKENS, xargs) for i in range(running)),
        (VirtualCall(f"w{i}", 0.0, 200 + i % 300, 100, queued) for i in range(waiting)),
    )


def cached(policy: str, running: int, waiting: int) -> VirtualRun:
    """Return a run as :func:`loaded` does, of long prompts that share a few documents."""
    engine = Engine(
        num_blocks=NUM_DOCUMENTS * DOCUMENT_TOKENS // 16 + running * 300 + 1000,
        block_size=16,
        max_num_batched_tokens=8192,
        max_num_seqs=running,
        prefix_caching=True,
        headway=None if policy == "stock" else {"policy": policy},
    )

    def call(name: str, index: int, output: int, ttft_s: float) -> VirtualCall:
        return VirtualCall(
            f"{name}{index}",
            0.0,
            DOCUMENT_TOKENS + QUESTION_TOKENS,
            output,
            {"slo_ttft_ms": 1000 * ttft_s, "slo_tbt_ms": 100},
            hash_ids=(f"document {index % NUM_DOCUMENTS}",),
            hash_tokens=DOCUMENT_TOKENS,
        )

    return fill(
        VirtualRun(engine, truth),
        (call("r", i, OUTPUT_TOKENS, 60.0) for i in range(running)),
        (call("w", i, 100, 3600.0) for i in range(waiting)),
    )


def compare(
    stock: VirtualRun, ours: VirtualRun, rounds: int, steps: int, after: int = 10
) -> dict[str, Any]:
    """Return milliseconds a step of both, and their ratio, from step *after* on."""
    pair = {"stock": Timed(stock), "ours": Timed(ours)}
    for timed in pair.values():
        timed.steps(after)
    samples: dict[str, list[float]] = {name: [] for name in pair}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, timed in pair.items():
            samples[name].append(timed.steps(steps) * 1e3)
    ratios = [ours / stock for ours, stock in zip(samples["ours"], samples["stock"], strict=True)]
    return {
        "stock_ms": round(statistics.median(samples["stock"]), 4),
        "ours_ms": round(statistics.median(samples["ours"]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def main() -> None:
    """Run both grids and print one JSON line."""
    parser = options(__doc__, "256x0,256x1000,1024x0,1024x1000,256x20000,1024x20000", 15, 20)
    parser.add_argument("--cached-grid", default="256x1000", help="the same of cached prompts")
    parser.add_argument("--groups-grid", default="256x1000", help="the same of layers in groups")
    parser.add_argument("--policy", default="headway")
    parser.add_argument("--after", type=int, default=10, help="steps before the first round")
    given = parser.parse_args()
    policy, rows = given.policy, []
    kinds: dict[str, Callable[[str, int, int], VirtualRun]] = {
        "plain": partial(loaded, promised=True),
        "cached": cached,
        "groups": partial(loaded, promised=True, groups=GROUPS),
    }
    grids = {"plain": given.grid, "cached": given.cached_grid, "groups": given.groups_grid}
    for kind, make in kinds.items():
        for running, waiting in cells(grids[kind]):
            stock, ours = (make(name, running, waiting) for name in ("stock", policy))
            row = {"policy": policy, "kind": kind, "running": running, "waiting": waiting}
            row |= compare(stock, ours, given.rounds, given.steps, given.after)
            print(row, flush=True)
            rows.append(row)
    report("plan", rows, given.json)


if __name__ == "__main__":
    main()
