"""Promises kept where questions come about a document that is still read.

Question: does a request compute what one in progress computes already, and what does that cost?
Command:  python experiments/shared_prompt/run.py [--loads 300]
Method:   loads of ``questions`` in tests/conformance/harm_scenarios.py, seeds 0 to N - 1, each
          served by stock vLLM's scheduler and by Headway's under the virtual clock.
Ends in one JSON line: promises offered, kept by stock and by Headway, in all and by part.
"""

from __future__ import annotations

import json
import math
import sys
from argparse import ArgumentParser
from pathlib import Path
from random import Random
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "conformance"))

import harm_rules as rules
from harm_runs import serve
from harm_scenarios import Scenario, blocks_of, questions

from headway.engines.vllm import bare, harness

LAB = SimpleNamespace(VirtualRun=harness.VirtualRun, Engine=bare.Engine, is_clean=lambda run: None)
"""What the tests' ``lab`` gives; what is left over is theirs to check."""


def scenario(seed: int) -> Scenario:
    """Return the load of a seed: everything drawn as the no-harm test draws it, but no bound."""
    rng = Random(seed)
    asks = questions(rng, rng.randint(3, 25), light=False)
    largest, together = max(map(blocks_of, asks)), sum(map(blocks_of, asks))
    room = rng.choice((0.0, 0.1, 0.4, 1.5, 1.5, 1.5))
    return Scenario(
        tuple(asks),
        math.ceil(largest + room * (together - largest)) + 1,
        rng.choice(("demote", "refuse")),
        caching=True,
        warm=rng.random() < 0.5,
        max_num_seqs=256,
        budget=rng.choice((2048, 8192, 512)),
        asynchronous=rng.random() < 0.5,
        scale=rng.choice((1.0, 1.0, 0.05, 20.0)),
        on_sim=rng.random() < 0.2,
    )


def main() -> None:
    """Serve every load and add up."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--loads", type=int, default=300)
    num_loads = parser.parse_args().loads
    kept: dict[str, list[int]] = {}
    for seed in range(num_loads):
        load = scenario(seed)
        pair = serve(LAB, load)
        offered = sum(bool(pair.stock[name].call.xargs) for name in pair.names)
        parts = ("all", load.overload, f"budget {load.budget}", "warm" if load.warm else "cold")
        for part in parts:
            sums = kept.setdefault(part, [0, 0, 0])
            for i, number in enumerate((offered, *rules.num_kept(pair))):
                sums[i] += number
    print(json.dumps({"experiment": "shared_prompt", "loads": num_loads, "kept": kept}))


if __name__ == "__main__":
    main()
