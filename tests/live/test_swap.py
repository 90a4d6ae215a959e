"""Swap with a real model: no token differs, and nobody who leaves leaves KV behind.

One engine of a quarter of the cache its prompts need serves them by recompute, by swap, by both,
and to clients half of whom hang up; a stock engine with room for everybody is the reference.
Run by pytest as tests, and by the tests as ``python test_swap.py NAME``, one process an
engine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytestmark = pytest.mark.live

NUM_PROMPTS, NUM_TOKENS, BLOCK = 60, 48, 32
ROOMY, TIGHT, HOST = 600, 40, 200
"""Blocks: all prompts at once; about a tenth of them; host memory."""

MODES = ("recompute", "swap", "mixed")


@pytest.fixture(scope="module")
def reference(run_engine: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
    """Stock vLLM with room for everybody."""
    return run_engine(Path(__file__), "stock")


@pytest.fixture(scope="module")
def pressed(run_engine: Callable[[Path, str], dict[str, Any]]) -> dict[str, Any]:
    """Headway with the swap connector and hardly any cache."""
    return run_engine(Path(__file__), "pressed")


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_identical(
    mode: str, reference: dict[str, Any], pressed: dict[str, Any]
) -> None:
    """Sixty prompts, preempted again and again: each gets the tokens it would have got."""
    served = pressed[mode]
    assert served["tokens"] == reference["tokens"]
    assert served["preemptions"] >= 20
    assert (served["swapped"] > 0) == (mode != "recompute")
    # Who has not filled a block yet has nothing worth copying; for all others there is room.
    assert served["swapped"] == served["asked"] - served["too_short"]
    assert served["left_behind"] == NOTHING


def test_who_hangs_up_leaves_nothing(reference: dict[str, Any], pressed: dict[str, Any]) -> None:
    """Half the clients gone at random, some while swapped out; the others' tokens are right."""
    served = pressed["aborts"]
    assert served["left_behind"] == NOTHING
    assert served["swapped"] > 0
    assert served["gone_while_swapped"] > 0
    assert len(served["tokens"]) == NUM_PROMPTS - NUM_PROMPTS // 2
    for index, tokens in served["tokens"].items():
        assert tokens == reference["tokens"][int(index)]


NOTHING = {"blocks": 0, "slots": 0, "requests": 0, "ledger": 0}


# -- in the engine's process -----------------------------------------------------------------


class Forced:
    """A policy core that says how each of its victims keeps its KV; otherwise the same object."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.mode = "recompute"
        self.num_planned = 0

    def plan(self, *args: Any) -> Any:
        plan = self._inner.plan(*args)
        return dataclasses.replace(plan, preempt=tuple(map(self._decided, plan.preempt)))

    def _decided(self, preempt: Any) -> Any:
        self.num_planned += 1
        swaps = self.mode == "swap" or (self.mode == "mixed" and self.num_planned % 2)
        return dataclasses.replace(preempt, how="swap" if swaps else "recompute")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Pressed:
    """The engine under pressure, with everything counted."""

    def __init__(self, llm: Any) -> None:
        self.engine = llm.llm_engine
        self.scheduler = self.engine.engine_core.engine_core.scheduler
        self.core = self.scheduler.headway = Forced(self.scheduler.headway)
        self.slots = self.scheduler.headway_swap.slots
        self.preempted = self.swapped = self.asked = self.too_short = 0
        preempt, store = self.scheduler._preempt_request, self.slots.try_store

        def counted(*args: Any, **kwargs: Any) -> None:
            self.preempted += 1
            preempt(*args, **kwargs)

        def stored(request_id: str, block_ids: list[int], num_tokens: int) -> bool:
            done = bool(store(request_id, block_ids, num_tokens))
            self.asked += 1
            self.too_short += num_tokens < BLOCK
            self.swapped += done
            return done

        self.scheduler._preempt_request, self.slots.try_store = counted, stored

    def serve(self, mode: str, rng: Random | None = None) -> dict[str, Any]:
        """Serve all prompts at once; with *rng* half the clients hang up at random."""
        self.core.mode = mode
        self.preempted = self.swapped = self.asked = self.too_short = 0
        names = add_all(self.engine)
        leaving = rng.sample(names, NUM_PROMPTS // 2) if rng else []
        tokens: dict[str, list[int]] = {}
        gone_while_swapped = 0
        while self.engine.has_unfinished_requests():
            for output in self.engine.step():
                if output.finished and output.outputs[0].finish_reason != "abort":
                    tokens[output.request_id] = list(output.outputs[0].token_ids)
            self.slots.validate()
            self.scheduler.headway.validate()
            kept = [i for i in leaving if any(k.startswith(i) for k in self.slots._stored)]
            if rng and leaving and (kept or rng.random() < 0.2):
                name = rng.choice(kept or leaving)
                leaving.remove(name)
                tokens.pop(name, None)
                gone_while_swapped += name in kept
                self.engine.abort_request([name])
        for name in leaving:  # They would have left later than they were served.
            tokens.pop(name, None)
        left = {i: tokens[name] for i, name in enumerate(names) if name in tokens}
        return {
            "tokens": left if rng else [left[i] for i in range(NUM_PROMPTS)],
            "preemptions": self.preempted,
            "swapped": self.swapped,
            "asked": self.asked,
            "too_short": self.too_short,
            "gone_while_swapped": gone_while_swapped,
            "left_behind": self.left_behind(),
        }

    def left_behind(self) -> dict[str, int]:
        """Return what is still held anywhere."""
        self.slots.take_copies()  # As the next step would: what was read is free.
        scheduler, core = self.scheduler, self.core
        free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return {
            "blocks": TIGHT - 1 - free,
            "slots": self.slots.num_slots - self.slots.num_free,
            "requests": len(scheduler.requests) + len(core.live.requests),
            "ledger": len(core.known.finishes),
        }


def add_all(llm_engine: Any) -> list[str]:
    """Send every prompt; return the requests' names. Each third one is a claim that presses."""
    from vllm import SamplingParams

    from headway.workloads.realtext import made_up_prompt

    names = []
    for i in range(NUM_PROMPTS):
        question = f"Question {i}: what follows the number {i * 7} and why?"
        prompt = made_up_prompt(120, i) if i % 4 == 0 else question
        claim = {"slo_ttft_ms": 60_000, "slo_tbt_ms": 5_000} if i % 3 == 0 else None
        params = SamplingParams(
            temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, extra_args=claim
        )
        names.append(f"p{i:02d}")
        llm_engine.add_request(names[-1], prompt, params)
    return names


def main(name: str) -> dict[str, Any]:
    """Build one engine and serve everything it is for."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import LLM

    from headway.engines.vllm import embedded
    from headway.engines.vllm.swap_connector import transfer_config

    extra: dict[str, Any] = {}
    if name == "pressed":
        token_bytes = 30 * 2 * 3 * 64 * 4  # SmolLM2: layers, keys and values, heads, width, float32
        extra = {
            "scheduler_cls": "headway.vllm.SyncScheduler",
            "additional_config": {"headway": {"policy": "fcfs"}},
            "kv_transfer_config": transfer_config(HOST * BLOCK * token_bytes),
        }
    llm = LLM(
        model=str(embedded.ensure()),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=BLOCK,
        num_gpu_blocks_override=TIGHT if extra else ROOMY,
        kv_cache_memory_bytes=1 << 30,
        enable_prefix_caching=False,
        **extra,
    )
    if name == "stock":
        names = add_all(llm.llm_engine)
        tokens: dict[str, list[int]] = {}
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                if output.finished:
                    tokens[output.request_id] = list(output.outputs[0].token_ids)
        return {"tokens": [tokens[i] for i in names]}
    pressed = Pressed(llm)
    assert pressed.slots.num_slots == HOST
    served = {mode: pressed.serve(mode) for mode in MODES}
    copies = pressed.scheduler.headway_swap
    served["aborts"] = pressed.serve("swap", Random(5))
    served["link"] = {"gib_per_s": copies.bytes_per_s / 1024**3, "block_bytes": copies.block_bytes}
    return served


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(sys.argv[1])))
