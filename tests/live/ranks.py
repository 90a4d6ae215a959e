"""One engine of one rank or two: ``python ranks.py SETTINGS_JSON`` prints one JSON line.

Not a test: run by ``test_parallel.py``, one process an engine. Settings: ``model`` (a folder),
``prompts`` (token ids), ``num_tokens`` of each answer, ``ranks``, ``num_blocks``, ``block_size``,
and with two ranks ``swap``: victims are copied out, or computed again.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

TWO_CORES = {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}
HOST_BLOCKS = 200
RANK_TOKEN_BYTES = 2 * 2 * 2 * 32 * 4
"""KV of a token in one of two ranks: layers, keys and values, heads, width, float32."""


class Counted:
    """A scheduler whose preemptions and copies to the host are counted.

    Args:
        is_ours: Whether it is Headway's, with the swap connector.
        swaps: How its victims keep their KV.
    """

    def __init__(self, scheduler: Any, is_ours: bool, swaps: bool) -> None:
        self.preemptions = self.swapped = 0
        self._scheduler = scheduler
        self._preempt, scheduler._preempt_request = scheduler._preempt_request, self._preempted
        self._slots = scheduler.headway_swap.slots if is_ours else None
        if self._slots is not None:
            assert self._slots.num_slots == HOST_BLOCKS, self._slots.num_slots
            self._store, self._slots.try_store = self._slots.try_store, self._stored
            from test_swap import Forced  # Beside this file, which runs as a script.

            scheduler.headway = Forced(scheduler.headway)
            scheduler.headway.mode = "swap" if swaps else "recompute"

    def _preempted(self, *args: Any, **kwargs: Any) -> None:
        self.preemptions += 1
        self._preempt(*args, **kwargs)

    def _stored(self, *args: Any) -> bool:
        done = bool(self._store(*args))
        self.swapped += done
        return done

    def left_behind(self, num_blocks: int) -> dict[str, int]:
        """Return what is still held, of *num_blocks* and elsewhere."""
        slots = self._slots
        if slots is not None:
            slots.take_copies()  # As the next step would: what was read is free.
        free = self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return {
            "blocks": num_blocks - 1 - free,
            "slots": slots.num_slots - slots.num_free if slots is not None else 0,
            "requests": len(self._scheduler.requests),
        }


def parallel(block_size: int) -> dict[str, Any]:
    """Return what makes an engine one of two ranks, Headway's, with room to swap to."""
    from headway.engines.vllm.swap_connector import transfer_config

    return {
        "tensor_parallel_size": 2,
        "distributed_executor_backend": "mp",
        "scheduler_cls": "headway.vllm.SyncScheduler",
        "additional_config": {"headway": {"policy": "fcfs"}},
        "kv_transfer_config": transfer_config(HOST_BLOCKS * block_size * RANK_TOKEN_BYTES),
    }


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Build one engine of so many ranks, serve every prompt at once, and count."""
    is_ours = settings["ranks"] == 2
    os.environ.update(
        TWO_CORES if is_ours else {},
        HF_HUB_OFFLINE="1",
        VLLM_NO_USAGE_STATS="1",
        DO_NOT_TRACK="1",
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_LOGGING_LEVEL="ERROR",
    )
    from vllm import LLM, SamplingParams

    llm = LLM(
        model=settings["model"],
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=settings["block_size"],
        num_gpu_blocks_override=settings["num_blocks"],
        kv_cache_memory_bytes=1 << 28,
        enable_prefix_caching=False,
        **(parallel(settings["block_size"]) if is_ours else {}),
    )
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    counted = Counted(scheduler, is_ours, settings.get("swap", False))
    params = SamplingParams(temperature=0.0, max_tokens=settings["num_tokens"], ignore_eos=True)
    asked = [{"prompt_token_ids": tokens} for tokens in settings["prompts"]]
    outputs = llm.generate(asked, params, use_tqdm=False)
    return {
        "tokens": [list(o.outputs[0].token_ids) for o in outputs],
        "preemptions": counted.preemptions,
        "swapped": counted.swapped,
        "left_behind": counted.left_behind(settings["num_blocks"]),
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
