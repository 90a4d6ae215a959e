"""Question: how long do the steps of a Llama-8B-shaped model take on this GPU?

Needs torch and nothing else: copy this folder to the machine and run this file. A decoder with
random weights serves made-up requests of three workloads as a server does: steps of decodes alone
(by CUDA graphs) and steps with chunks of prompts. In the middle the batches grow, then the machine
seems to lose a third of its clock, then it has it back. Writes a line a step:
``headway.latency.model.StepShape``, seconds and phase. judge.py reads them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from decoder import PAGE_TOKENS, TINY, Batch, Decoder, Sizes, padded, paged
from traffic import Part, Traffic, shape_of

PHASES = (("steady", 4, False), ("larger batches", 1, False), ("slow", 1, True), ("fast", 1, False))
"""Name, what the most running requests are divided by, whether half of the layers run twice."""
GRAPH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
"""Decodes of a captured graph; a step runs in the next larger one, as in vLLM."""
LEAST_LENGTH = 512
"""KV tokens that the shortest graphs of padded decodes read; each next ones read twice as many."""
KV_SHARE = 0.8
"""Of the memory left beside the weights; the rest is for activations, logits and graphs."""
WARM_UP_STEPS = 20

Key = tuple[bool, int, int]
"""Whether the machine is slow, decodes, KV tokens that they are padded to."""


class Machine:
    """The decoder, and how its steps are run and timed."""

    def __init__(self, decoder: Decoder, with_graphs: bool) -> None:
        self.decoder = decoder
        self._graphs: dict[Key, tuple[torch.cuda.CUDAGraph, Batch, torch.Tensor]] = {}
        if with_graphs:
            self._capture()

    @property
    def num_graphs(self) -> int:
        """Graphs captured: steps of decodes alone run in them."""
        return len(self._graphs)

    def _sizes(self) -> list[int]:
        most = self.decoder.num_slots
        return [size for size in GRAPH_SIZES if size < most] + [min(most, GRAPH_SIZES[-1])]

    def _lengths(self) -> list[int]:
        most = self.decoder.max_context
        if self.decoder.attention is paged:
            return [most]  # The kernel reads what is used, whatever could be.
        return [n for n in (LEAST_LENGTH << i for i in range(16)) if n < most] + [most]

    def _capture(self) -> None:
        pool = torch.cuda.graph_pool_handle()
        for slow in (False, True):
            for size in reversed(self._sizes()):
                for length in reversed(self._lengths()):
                    self._capture_one((slow, size, length), pool)

    def _capture_one(self, key: Key, pool: Any) -> None:
        slow, size, length = key
        batch = self.decoder.to_device(self.decoder.batch_of([], size, length))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self.decoder.forward(batch, slow)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            out = self.decoder.forward(batch, slow)
        self._graphs[key] = graph, batch, out

    def run(self, parts: Sequence[Part], slow: bool) -> list[int]:
        """Run one step, from a list on the host to sampled tokens on the host."""
        if self._graphs and all(part.is_decode for part in parts):
            longest = max(part.start + 1 for part in parts)
            size = next(n for n in self._sizes() if n >= len(parts))
            length = next(n for n in self._lengths() if n >= longest)
            graph, static, out = self._graphs[slow, size, length]
            batch = self.decoder.batch_of(parts, size, length)
            for held, new in zip(static.tensors, batch.tensors, strict=True):
                held.copy_(new, non_blocking=True)
            graph.replay()
        else:
            batch = self.decoder.to_device(self.decoder.batch_of(parts))
            out = self.decoder.forward(batch, slow)
        tokens: list[int] = out[: len(parts)].tolist()
        return tokens

    def timed(self, parts: Sequence[Part], slow: bool) -> float:
        """Return the seconds of a step."""
        began_s = time.perf_counter()
        self.run(parts, slow)
        return time.perf_counter() - began_s


def attend_paged_if_right(decoder: Decoder) -> None:
    """Use paged attention where this torch has it and it gives what padded attention gives."""
    parts = [Part(0, 5, 1, True), Part(1, 0, 7, False)]
    batch = decoder.to_device(decoder.batch_of(parts))
    groups, width = decoder.sizes.num_key_value_heads, decoder.sizes.head_dim
    q = torch.randn(8, decoder.sizes.num_attention_heads, width).to(decoder.device, decoder.dtype)
    shape = (decoder.num_slots + 1, decoder.max_context, groups, width)
    keys, values = (torch.randn(shape, device=decoder.device, dtype=decoder.dtype) for _ in "kv")
    try:
        off = (paged(q, keys, values, batch) - padded(q, keys, values, batch)).abs().max().item()
    except (ImportError, NotImplementedError, RuntimeError, TypeError) as error:
        print(f"No paged attention here, so KV is padded: {str(error)[:200]}", file=sys.stderr)
        return
    if off < 0.05:  # bfloat16 has three digits, and values are of size one.
        decoder.attention = paged
    else:
        print(f"Paged attention is off by {off:.3g}, so KV is padded.", file=sys.stderr)


def num_slots_of(decoder: Decoder) -> int:
    """Return the slots that the GPU has room for."""
    free_bytes, _ = torch.cuda.mem_get_info()
    slot_bytes = decoder.max_context * decoder.sizes.kv_bytes_per_token(decoder.dtype.itemsize)
    return min(int(KV_SHARE * free_bytes / slot_bytes) - 1, GRAPH_SIZES[-1])


def rows(
    machine: Machine, until_s: float, steps: int | None, seed: int
) -> Iterator[dict[str, Any]]:
    """Yield a row a step; every phase lasts *steps*, or as long as any other until *until_s*."""
    decoder = machine.decoder
    traffic = Traffic(decoder.num_slots, decoder.max_context, seed)
    for slow in (True, False):
        for _ in range(WARM_UP_STEPS):
            machine.run(traffic.next_step(1), slow)
    for number, (phase, divisor, slow) in enumerate(PHASES):
        now_s = time.monotonic()
        ends_s = now_s + (until_s - now_s) / (len(PHASES) - number)
        done = 0
        while done < steps if steps is not None else time.monotonic() < ends_s:
            parts = traffic.next_step(divisor)
            seconds = machine.timed(parts, slow)
            yield {**shape_of(parts), "seconds": seconds, "phase": phase,
                   "workload": traffic.workload}  # fmt: skip
            done += 1


def head_of(machine: Machine) -> dict[str, Any]:
    """Return the first line: which machine and model, and how steps were computed."""
    decoder = machine.decoder
    on_gpu = decoder.device.type == "cuda"
    return {
        "schema": 1,
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "memory_bytes": torch.cuda.get_device_properties(0).total_memory if on_gpu else 0,
        "torch": str(torch.__version__),
        "attention": decoder.attention.__name__,
        "num_graphs": machine.num_graphs,
        "config": asdict(decoder.sizes),
        "value_bytes": decoder.dtype.itemsize,
        "kv_bytes_per_token": decoder.sizes.kv_bytes_per_token(decoder.dtype.itemsize),
        "kv_tokens": decoder.num_slots * decoder.max_context,
        "num_slots": decoder.num_slots,
    }


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options; ends with code 2 and one sentence where they make no sense."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("steps.jsonl"))
    parser.add_argument("--minutes", type=float, default=8.0, help="in all, set-up included")
    parser.add_argument("--steps", type=int, help="of each phase [as many as there is time for]")
    parser.add_argument("--layers", type=int, default=32, help="fewer on a GPU below 24 GB")
    parser.add_argument("--max-context", type=int, default=4096, help="tokens of a request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs")
    parser.add_argument("--padded", action="store_true", help="without paged attention")
    parser.add_argument("--tiny-on-cpu", action="store_true", help="a test; says nothing of a GPU")
    given = parser.parse_args(argv)
    if given.minutes <= 0 or given.layers < 1 or (given.steps is not None and given.steps < 1):
        parser.error("--minutes, --layers and --steps must be above 0.")
    if given.max_context < PAGE_TOKENS or given.max_context % PAGE_TOKENS:
        parser.error(f"--max-context must be a multiple of {PAGE_TOKENS}.")
    if not given.tiny_on_cpu and not torch.cuda.is_available():
        parser.error("torch sees no GPU; --tiny-on-cpu tries the script without one.")
    return given


@torch.inference_mode()
def main(argv: Sequence[str] | None = None) -> None:
    """Measure, and write the rows."""
    given = options(argv)
    until_s = time.monotonic() + 60 * given.minutes
    torch.manual_seed(given.seed)
    on_gpu = not given.tiny_on_cpu
    decoder = Decoder(
        Sizes(num_hidden_layers=given.layers) if on_gpu else TINY,
        torch.device("cuda" if on_gpu else "cpu"),
        torch.bfloat16 if on_gpu else torch.float32,
        given.max_context,
    )
    num_slots = num_slots_of(decoder) if on_gpu else 6
    if num_slots < 4:
        sys.exit("This GPU has no room for four requests; give fewer --layers.")
    decoder.allocate(num_slots)
    if on_gpu and not given.padded:
        attend_paged_if_right(decoder)
    machine = Machine(decoder, with_graphs=on_gpu and not given.eager)
    with given.out.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head_of(machine)) + "\n")
        for row in rows(machine, until_s, given.steps, given.seed):
            file.write(json.dumps(row) + "\n")
    print(f"{given.out}: {head_of(machine)['device']}")


if __name__ == "__main__":
    main()
