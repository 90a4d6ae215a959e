"""Greedy generation in one process: ``python generate.py SETTINGS_JSON`` prints one JSON line.

Not a test: run by ``test_identical.py``, one process an engine, so that none sees another's state.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
)

NUM_PROMPTS = 40
NUM_TOKENS = 48


def prompts() -> list[str]:
    """Return short questions and, every fourth, some text to continue."""
    from headway.workloads.realtext import made_up_prompt

    questions = [f"Question {i}: what follows the number {i * 7} and why?" for i in range(40)]
    return [made_up_prompt(150, i) if i % 4 == 0 else q for i, q in enumerate(questions)]


def promise(index: int) -> dict[str, Any] | None:
    """Return what request *index* asks for: every other one is a claim that presses."""
    return {"slo_ttft_ms": 60_000, "slo_tbt_ms": 5_000} if index % 2 else None


def main(settings: dict[str, Any]) -> dict[str, Any]:
    """Generate for all prompts at once; return token ids and the number of preemptions."""
    from vllm import LLM, SamplingParams

    from headway.engines.vllm import embedded

    extra: dict[str, Any] = {}
    if settings["policy"] != "stock":
        extra = {
            "scheduler_cls": "headway.vllm.SyncScheduler",
            "additional_config": {"headway": {"policy": settings["policy"]}},
        }
    llm = LLM(
        model=str(embedded.ensure()),
        dtype="float32",
        enforce_eager=True,
        max_model_len=512,
        block_size=32,
        num_gpu_blocks_override=settings["num_blocks"],
        kv_cache_memory_bytes=1 << 29,
        enable_prefix_caching=False,
        **extra,
    )
    params = [
        SamplingParams(
            temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True, extra_args=promise(i)
        )
        for i in range(NUM_PROMPTS)
    ]
    scheduler = llm.llm_engine.engine_core.engine_core.scheduler
    preempted: list[str] = []
    preempt = scheduler._preempt_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> None:
        preempted.append(request.request_id)
        preempt(request, *args, **kwargs)

    scheduler._preempt_request = counted
    outputs = llm.generate(prompts(), params, use_tqdm=False)
    free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
    return {
        "tokens": [list(o.outputs[0].token_ids) for o in outputs],
        "preemptions": len(preempted),
        "blocks_leaked": settings["num_blocks"] - 1 - free,
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(json.loads(sys.argv[1]))))
