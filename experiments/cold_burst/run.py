"""Question: does a server started a moment ago refuse more of a burst than once it is warm?

200, 2,000 and 6,000 small requests come at once, on vLLM's own scheduler under the virtual clock
(8B on H100), with two longest waits, in both overload modes: to a server that has served nobody,
and ten seconds after 300 requests one by one. Writes results.json and results.md beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.latency import profile
from headway.latency.truth import Truth

HERE = Path(__file__).parent
SIZES, WAITS_S, NUM_BEFORE = (200, 2000, 6000), (10.0, 60.0), 300
PROMISE = {"slo_ttft_ms": 1000, "slo_tbt_ms": 100}


def small(name: str, index: int, at_s: float) -> VirtualCall:
    """Return a request of 150 to 349 prompt tokens and 20 to 79 output tokens."""
    prompt, output = 150 + 37 * index % 200, 20 + 13 * index % 60
    return VirtualCall(f"{name}{index:05d}", at_s, prompt, output, PROMISE)


def fate(overload: str, num: int, max_wait_s: float, num_before: int) -> dict[str, Any]:
    """Return how many of a burst were refused, and had their first token in time."""
    options = {"max_wait_s": max_wait_s}
    engine = Engine(
        num_blocks=30_000,
        max_num_batched_tokens=8192,
        headway={"policy": "headway", "overload": overload, "options": options},
    )
    burst = [small("burst", i, 0.2 * num_before + 10.0) for i in range(num)]
    before = [small("before", i, 0.2 * i) for i in range(num_before)]
    outcomes = VirtualRun(engine, Truth(profile.load("llama-3.1-8b@h100"))).run([*before, *burst])
    ends = [outcomes[call.request_id] for call in burst]
    first_s = [o.emitted_at_s[0] - o.call.arrived_at_s for o in ends if o.emitted_at_s]
    return {
        "refused": sum(o.finish_reason == "abort" for o in ends),
        "in_time": sum(span_s <= PROMISE["slo_ttft_ms"] / 1000 for span_s in first_s),
    }


def main() -> None:
    """Run the grid, print and write it."""
    rows = []
    for overload in ("demote", "refuse"):
        for num in SIZES:
            for max_wait_s in WAITS_S:
                row: dict[str, Any] = {
                    "overload": overload,
                    "burst": num,
                    "max_wait_s": max_wait_s,
                    "cold": fate(overload, num, max_wait_s, 0),
                    "warm": fate(overload, num, max_wait_s, NUM_BEFORE),
                }
                print(row, flush=True)
                rows.append(row)
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    columns = "overload", "burst", "longest wait, s", "refused cold", "refused warm"
    lines = [" | ".join(("", *columns, "in time cold", "in time warm", "")).strip()]
    lines.append("|---" * 7 + "|")
    for row in rows:
        cold, warm = row["cold"], row["warm"]
        refused = f"{cold['refused']:,} | {warm['refused']:,}"
        load = f"{row['overload']} | {row['burst']:,} | {row['max_wait_s']:.0f}"
        lines.append(f"| {load} | {refused} | {cold['in_time']} | {warm['in_time']} |")
    (HERE / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
