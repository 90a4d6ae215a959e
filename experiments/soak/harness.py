"""Question: after two hours of everything at once, is anything lost, kept or grown?

vLLM's scheduler with Headway under the virtual clock, watched as a server with a page is, beside a
reader that never reads. Chats, code and summaries in bursts beyond what the machine can serve; a
sixth of the clients hang up; some prompts can never fit, some requests outgrow the cache; a quarter
of the traffic promises nothing; prefixes are shared; victims are swapped while there is host
memory; steps are noisy, pause, and get 80 % slower and faster by turns. After each quarter the
server is drained and its books are read. Bounds: nothing lost, nothing left behind, memory within
3 % between the first quarter and the last: the blocks that Python's allocator has given out since
before the server was built, and the resident memory of the process. Writes harness.json and
harness.md; exit code 1 when a bound is missed.

    python experiments/soak/harness.py [--hours 2] [--out FOLDER]
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import click
import psutil

from headway.bench.provenance import commit
from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.virtual import Outcome, VirtualCall
from headway.engines.vllm import quiet  # noqa: F401  Before vLLM.
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.channel import Receiver, Sender
from headway.engines.vllm.harness import VirtualRun
from headway.engines.vllm.watch import Watch
from headway.latency import profile as profiles
from headway.latency.truth import Drift, Hiccups, Truth
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load

HERE = Path(__file__).parent
GPU = "llama-3.1-8b@l40s"
KV_TOKENS, BLOCK = 40_000, 16
QUARTERS = 4
RATE_RPS = 1.6
FLAT_WITHIN = 0.03
SETTINGS = (
    {"overload": "demote", "asynchronous": False},
    {"overload": "refuse", "asynchronous": True},
)


def traffic(begins_s: float, length_s: float, seed: int) -> list[VirtualCall]:
    """Return one quarter's requests; all quarters have the same shape and their own draws."""
    load = Load("mixed", RATE_RPS, int(RATE_RPS * length_s), seed, arrivals="onoff:20:40")
    calls, _ = calls_of(requests_of(load), book_of(load))
    rng = Random(seed)
    return [_spoiled(call, begins_s, f"q{seed}-{i}", rng) for i, call in enumerate(calls)]


def _spoiled(call: VirtualCall, begins_s: float, name: str, rng: Random) -> VirtualCall:
    """Return *call* as one of the clients a server has to live with would send it."""
    arrived_at_s = begins_s + call.arrived_at_s
    call = replace(call, request_id=name, arrived_at_s=arrived_at_s)
    if rng.random() < 0.25:
        call = replace(call, xargs={})
    if rng.random() < 0.01:
        return replace(call, num_prompt_tokens=KV_TOKENS + rng.randrange(1, 9000))
    if rng.random() < 0.002:
        return replace(call, num_output_tokens=2 * KV_TOKENS, max_output_tokens=2 * KV_TOKENS)
    if rng.random() < 0.2:
        shared = min(call.num_prompt_tokens, 500)
        call = replace(call, hash_ids=(f"p{rng.randrange(5)}",), hash_tokens=shared)
    if rng.random() < 1 / 6:
        call = replace(call, abort_at_s=arrived_at_s + rng.expovariate(1 / 6))
    return call


class Counted(list[Any]):
    """Steps that are counted and not kept: a server keeps none, and here they outgrew it."""

    num_steps = 0

    def append(self, _: Any) -> None:
        """Count one."""
        self.num_steps += 1

    def __len__(self) -> int:
        """Return how many there were."""
        return self.num_steps


def build(settings: dict[str, Any], folder: Path, seed: int) -> VirtualRun:
    """Return a virtual server with everything on."""
    profile = profiles.load(GPU)
    engine = Engine(
        num_blocks=KV_TOKENS // BLOCK + 1,
        block_size=BLOCK,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        max_num_seqs=64,
        asynchronous=settings["asynchronous"],
        prefix_caching=True,
        headway={"overload": settings["overload"]},
        host_blocks=KV_TOKENS // BLOCK,
    )
    truth = Truth(
        profile, noise=0.1, drift=Drift("wave", 0.8, 3000), hiccups=Hiccups(0.002, 0.3), seed=seed
    )
    run = VirtualRun(engine, truth)
    run.steps = Counted()
    run.scheduler.headway_book = book_of(Load("mixed"))
    watch = run.scheduler.headway_watch = Watch(run.scheduler.headway, Sender(folder))
    run.scheduler.headway = Journal(run.scheduler.headway, watch)
    return run


def ended(outcome: Outcome) -> str:
    """Return how a client's request ended; ``lost`` when it did not, or not with all its tokens."""
    call, answer = outcome.call, wire.parse(outcome.stop_reason)
    if outcome.finish_reason is None:
        return "lost"
    if isinstance(answer, wire.Refused):
        return "refused"
    if isinstance(answer, wire.Invalid):
        return "rejected" if call.num_prompt_tokens > KV_TOKENS else "lost"
    if outcome.finish_reason == "abort":
        return "hung up" if call.abort_at_s is not None else "lost"
    if len(outcome.emitted_at_s) == call.num_output_tokens:
        return "served"
    grown = call.num_prompt_tokens + len(outcome.emitted_at_s)
    return "capped" if grown >= KV_TOKENS - 1 else "lost"


def left_behind(run: VirtualRun) -> dict[str, int]:
    """Return what an empty server still holds: all zero, or something leaks."""
    scheduler = run.scheduler
    core, slots = scheduler.headway, scheduler.headway_swap.slots
    slots.take_copies()  # As the next step would: what was read is free.
    core.validate()
    slots.validate()
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return {
        "blocks": run.engine.num_blocks - 1 - free,
        "host_slots": slots.num_slots - slots.num_free,
        "vllm_requests": len(scheduler.requests) + len(scheduler.running) + len(scheduler.waiting),
        "core_requests": len(core.live.requests) + core.live.num_waiting + core.live.num_running,
        "ledger": len(core.known.finishes),
        "steps_in_flight": len(core.known.pace.in_flight),
        "stories": len(core.observed.book.live),
    }


def soak(settings: dict[str, Any], hours: float) -> dict[str, Any]:
    """Serve *hours* of traffic in quarters; return what was seen after each."""
    quarter_s = hours * 3600 / QUARTERS
    with tempfile.TemporaryDirectory() as folder:
        # What is imported and cached once for all does not belong to the server.
        build(settings, Path(folder), seed=0).run(traffic(0.0, 30.0, seed=0))
        gc.collect()
        num_before = sys.getallocatedblocks()
        slow_reader = Receiver(folder)
        run = build(settings, Path(folder), seed=1)
        rows = []
        for number in range(QUARTERS):
            began_s = time.monotonic()
            begins_s = max(number * quarter_s, run.clock.time_s)
            outcomes = run.run(traffic(begins_s, quarter_s, seed=number))
            ends = Counter(ended(outcome) for outcome in outcomes.values())
            run.outcomes.clear()  # A server keeps none.
            rows.append(
                {
                    "quarter": number + 1,
                    "virtual_s": run.clock.time_s,
                    "offered": sum(ends.values()),
                    "ends": dict(sorted(ends.items())),
                    "steps": len(run.steps),
                    "preemptions": run.num_preemptions,
                    "swapped": run.link.num_swapped,
                    "left_behind": left_behind(run),
                    **memory(num_before),
                    "wall_s": round(time.monotonic() - began_s, 1),
                }
            )
            click.echo(json.dumps(rows[-1]))
        slow_reader.close()
    return {**settings, "quarters": rows, "misses": misses(rows)}


def memory(num_before: int) -> dict[str, int]:
    """Return the memory blocks Python holds beyond *num_before*, and the process's RSS."""
    gc.collect()
    return {
        "python_blocks": sys.getallocatedblocks() - num_before,
        "rss_bytes": psutil.Process().memory_info().rss,
    }


def misses(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the bounds that were missed, in words."""
    found = []
    if lost := sum(row["ends"].get("lost", 0) for row in rows):
        found.append(f"{lost} requests were lost")
    found += [
        f"quarter {row['quarter']} left {count} {what}"
        for row in rows
        for what, count in row["left_behind"].items()
        if count
    ]
    for name in ("python_blocks", "rss_bytes"):
        growth = rows[-1][name] / rows[0][name] - 1.0
        if growth > FLAT_WITHIN:
            found.append(f"{name} grew by {growth:.1%}")
    return found


def markdown(runs: Iterable[dict[str, Any]]) -> str:
    """Return a line a quarter."""
    lines = [
        "| run | quarter | virtual time, s | offered | how they ended | steps so far"
        " | preemptions so far (swapped) | left behind | memory blocks of Python | RSS, MB |",
        "|---|---:|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        for row in run["quarters"]:
            name = f"{run['overload']}, {'async' if run['asynchronous'] else 'sync'}"
            ends = ", ".join(f"{count} {what}" for what, count in row["ends"].items())
            lines.append(
                f"| {name} | {row['quarter']} | {row['virtual_s']:.0f} | {row['offered']} | {ends}"
                f" | {row['steps']} | {row['preemptions']} ({row['swapped']})"
                f" | {sum(row['left_behind'].values())} | {row['python_blocks']}"
                f" | {row['rss_bytes'] / 1e6:.0f} |"
            )
        lines.append("")
        lines.append(f"Bounds missed: {'; '.join(run['misses']) or 'none'}.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


@click.command()
@click.option("--hours", default=2.0, show_default=True, help="Virtual hours of each run.")
@click.option("--out", default=HERE, type=click.Path(path_type=Path, file_okay=False))
def main(hours: float, out: Path) -> None:
    """Soak both settings and write what was seen."""
    runs = [soak(settings, hours) for settings in SETTINGS]
    document = {
        "schema": 1,
        "commit": commit(HERE.parent.parent),
        "hours": hours,
        "gpu": GPU,
        "kv_tokens": KV_TOKENS,
        "rate_rps": RATE_RPS,
        "runs": runs,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "harness.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / "harness.md").write_text(markdown(runs), encoding="utf-8")
    click.echo(markdown(runs))
    sys.exit(1 if any(run["misses"] for run in runs) else 0)


if __name__ == "__main__":
    main()
