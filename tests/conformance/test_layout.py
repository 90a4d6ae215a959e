"""What the core counts in blocks, against what vLLM's own managers take, group by group."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.engines.virtual import VirtualCall
from headway.engines.vllm import compat
from headway.engines.vllm.bare import build
from headway.engines.vllm.kv_groups import kv_groups, view_of
from headway.kv_layout import KvLayout
from headway.latency import profile
from headway.latency.truth import Truth

LONGEST = 3_000
BLOCK = 16


def mix(rng: Random) -> tuple[str, ...]:
    """Return the kinds of one to six groups; states are kept in the cache in all groups or none."""
    bounded = ["sliding:64", "sliding:500", "local:128", "state"]
    kinds = [*rng.choices(["full", *bounded], k=rng.randint(1, 6))]
    if rng.random() < 0.3:
        kinds = ["full", *["aligned-state" if kind == "state" else kind for kind in kinds]]
    return tuple(kinds)


class Pool:
    """One request on vLLM's KV cache manager, nothing else in the cache."""

    def __init__(self, lab: Any, folder: Path, groups: tuple[str, ...], most_step: int) -> None:
        engine = lab.Engine(
            num_blocks=2 + len(groups) * LONGEST // BLOCK,
            block_size=BLOCK,
            max_model_len=LONGEST,
            max_num_batched_tokens=most_step,
            max_num_seqs=min(most_step, 64),
            groups=groups,
            prefix_caching="aligned-state" in groups,
        )
        self.run = lab.VirtualRun(engine, lambda shape: 1.0)
        self.scheduler = build(engine, folder)
        self.manager = self.scheduler.kv_cache_manager
        self.aligned = "aligned-state" in groups
        found = kv_groups(self.scheduler)
        self.layout = KvLayout(view_of(self.scheduler, found)["block_size_tokens"], found or ())

    @property
    def num_held(self) -> int:
        return int(compat.total_blocks(self.scheduler) - compat.free_blocks(self.scheduler))

    def request(self, num_prompt_tokens: int) -> Any:
        return self.run.request_of(VirtualCall("one", 0.0, num_prompt_tokens, 200))

    def leave(self, num_free: int) -> list[Any]:
        """Take all free blocks but so many."""
        pool = self.manager.block_pool
        return list(pool.get_new_blocks(compat.free_blocks(self.scheduler) - num_free))


@pytest.mark.parametrize("seed", range(60))
def test_a_request_takes_what_the_layout_says(lab: Any, tmp_path: Path, seed: int) -> None:
    """Step by step, prompt in pieces and then decode: never more, and never refused within it."""
    rng = Random(seed)
    groups, most_step = mix(rng), rng.choice([64, 256, 1024])
    pool = Pool(lab, tmp_path, groups, most_step)
    layout, manager = pool.layout, pool.manager
    num_prompt = rng.randint(1, LONGEST - 200)
    request = pool.request(num_prompt)
    room = layout.kept_blocks(num_prompt + 100) + layout.passing_blocks(most_step)
    occupied = pool.leave(room)
    taken = len(occupied)
    while request.num_computed_tokens < num_prompt:
        start, left = request.num_computed_tokens, num_prompt - request.num_computed_tokens
        chunk = min(rng.randint(1, most_step), left)
        if pool.aligned and chunk < left:
            chunk = max(chunk // BLOCK * BLOCK, BLOCK)
        assert manager.allocate_slots(request, min(chunk, left)) is not None, (groups, start, chunk)
        request.num_computed_tokens += min(chunk, left)
        held = pool.num_held - taken
        most = layout.kept_blocks(start + chunk) + layout.passing_blocks(chunk)
        assert held <= most, (groups, layout.groups, start, chunk)
    for _ in range(100):
        request.append_output_token_ids(7)
        assert manager.allocate_slots(request, 1) is not None, groups
        held = pool.num_held - taken
        kept = layout.kept_blocks(request.num_computed_tokens + 1)
        assert held <= kept, (groups, layout.groups, request.num_computed_tokens)
        request.num_computed_tokens += 1
    # A window begins inside a block, a chunk of local attention anywhere: at most that is too much.
    assert kept <= held + len(groups) * (128 // BLOCK + 1)
    manager.free(request)
    assert pool.num_held == taken


@pytest.mark.parametrize("seed", range(40))
def test_stock_starts_a_prompt_with_exactly_the_blocks(lab: Any, tmp_path: Path, seed: int) -> None:
    """With a block fewer than the layout says vLLM's own gate keeps a whole prompt out."""
    rng = Random(seed)
    groups, most_step = mix(rng), rng.choice([64, 256, 1024])
    pool = Pool(lab, tmp_path, groups, most_step)
    request = pool.request(rng.randint(1, LONGEST - 200))
    needed = pool.layout.blocks(request.num_tokens)
    occupied = pool.leave(needed - 1)
    chunk = min(request.num_tokens, most_step, BLOCK)

    def starts() -> bool:
        return pool.manager.allocate_slots(request, chunk, full_sequence_must_fit=True) is not None

    if "aligned-state" not in groups:  # There a block more is counted than a start takes.
        assert not starts(), groups
    pool.manager.block_pool.free_blocks(occupied[:1])
    assert starts(), (groups, pool.layout.groups)


def test_a_prompt_starts_while_the_largest_step_would_not_fit(lab: Any) -> None:
    """Stock keeps room for a window and its largest step in each group; steps here are shorter."""
    calls = [
        VirtualCall("stream", 0.0, 5_000, 600),
        VirtualCall("long", 1.0, 5_000, 20, {"slo_ttft_ms": 400.0, "slo_tbt_ms": 100.0}),
    ]
    ttft_s, preempted = [], []
    for headway in (None, {"policy": "headway"}):
        engine = lab.Engine(
            num_blocks=2_500,
            max_num_batched_tokens=8_192,
            max_model_len=6_000,
            groups=("full", *["sliding:1024"] * 5),
            headway=headway,
        )
        run = lab.VirtualRun(engine, Truth(profile.load("llama-3.1-8b@h100")))
        outcomes = run.run(calls)
        lab.all_served(outcomes)
        ttft_s.append(outcomes["long"].emitted_at_s[0] - 1.0)
        preempted.append(run.num_preemptions)
    assert ttft_s[1] < 0.4 < ttft_s[0]
    assert preempted == [0, 0]
