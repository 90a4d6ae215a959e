"""One feature on stock vLLM, then on Headway: ``python features.py FEATURE`` prints one line.

Not a test: run by ``test_features.py``. The models are tiny and random (``tiny.py``): what is
compared is who was served, and with which tokens. Each engine lives in a process of its own, forked
when vLLM is imported: that takes longer than all the rest.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    DO_NOT_TRACK="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    # Tiny products are computed soonest by one thread, wherever the system puts it.
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    OMP_NUM_THREADS="1",
)

import tiny

SCHEDULERS = ("stock", "headway")

TIGHT = {"slo_ttft_ms": 300, "slo_tbt_ms": 40}
LOOSE = {"slo_ttft_ms": 60_000, "slo_tbt_ms": 5_000}
PROMISES = (TIGHT, None, LOOSE, None)
"""By turns: what presses makes room at the cost of what does not."""

BLOCK = 32

NGRAMS = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 2,
}

PLATE = "[A-Z]{3}-[0-9]{4} (red|green|blue)"
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "is_new": {"type": "boolean"}},
    "required": ["size", "is_new"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Feature:
    """How a feature is tried.

    Attributes:
        model: Writes the model.
        engine: Arguments of vLLM's engine beside those that all have.
        sampling: Arguments of every request's ``SamplingParams``.
        num_requests: Asked at once, in each round.
        num_rounds: Turns of each conversation: the next begins with what was said before.
        longest: Tokens of the longest first prompt.
        num_adapters: Requests take them by turns. The base model has no turn: beside adapters the
            CPU engine gives whoever has none the one of the last slot.
        has_grammars: Every request has one.
        repeats: Prompts say the same few tokens again and again.
    """

    model: Callable[[Path], None] = tiny.llama
    engine: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    num_requests: int = 16
    num_rounds: int = 1
    longest: int = 300
    num_adapters: int = 0
    has_grammars: bool = False
    repeats: bool = False


ADAPTERS = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8, "max_cpu_loras": 4}

FEATURES = {
    "plain": Feature(engine={"num_gpu_blocks_override": 40}),
    "sliding": Feature(tiny.gemma3, {"num_gpu_blocks_override": 70}),
    "hybrid": Feature(tiny.falcon_h1, {"num_gpu_blocks_override": 30}),
    "states alone": Feature(tiny.mamba2, {"num_gpu_blocks_override": 12}),
    "drafts": Feature(
        engine={"num_gpu_blocks_override": 40, "speculative_config": NGRAMS}, repeats=True
    ),
    "adapters": Feature(engine={"num_gpu_blocks_override": 40, **ADAPTERS}, num_adapters=3),
    # A random model would go on with spaces until its answer is cut.
    "grammars": Feature(
        engine={
            "num_gpu_blocks_override": 40,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
        has_grammars=True,
    ),
    # Where a prompt is cut, the CPU engine has no way to sample it with a seed: stock's neither.
    "n=4, whole prompts": Feature(
        engine={
            "num_gpu_blocks_override": 60,
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": 512,
        },
        sampling={"n": 4, "seed": 7, "temperature": 0.7},
        num_requests=8,
    ),
    "turns": Feature(
        engine={"num_gpu_blocks_override": 60, "enable_prefix_caching": True},
        num_rounds=3,
        longest=200,
    ),
    "several": Feature(
        engine={
            "num_gpu_blocks_override": 60,
            "enable_prefix_caching": True,
            "speculative_config": NGRAMS,
            **ADAPTERS,
        },
        num_rounds=2,
        longest=200,
        num_adapters=3,
        repeats=True,
    ),
}

EMBEDDINGS = {
    "embeddings": (tiny.llama, {"convert": "embed", "num_gpu_blocks_override": 40}),
    "embeddings, no KV cache": (tiny.bert, {}),
}


class Watched:
    """Counts what a scheduler does.

    Attributes:
        num_preemptions: Requests preempted.
        num_accepted: Draft tokens that turned out right.
    """

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.num_preemptions = 0
        self.num_accepted = 0
        self._preempt, self._update = scheduler._preempt_request, scheduler.update_from_output
        scheduler._preempt_request = self.preempt
        scheduler.update_from_output = self.update

    def preempt(self, *args: Any, **kwargs: Any) -> None:
        self.num_preemptions += 1
        self._preempt(*args, **kwargs)

    def update(self, output: Any, result: Any, *args: Any, **kwargs: Any) -> Any:
        drafted = output.scheduled_spec_decode_tokens
        for name, tokens in zip(result.req_ids, result.sampled_token_ids or [], strict=False):
            self.num_accepted += max(len(tokens) - 1, 0) if name in drafted else 0
        return self._update(output, result, *args, **kwargs)

    def counts(self) -> dict[str, int]:
        aside = getattr(self.scheduler, "headway_aside", None)
        return {
            "preemptions": self.num_preemptions,
            "accepted": self.num_accepted,
            "asides": aside.num_steps if aside is not None else 0,
            "left": len(self.scheduler.requests),
        }


def engine_of(folder: Path, headway: bool, extra: dict[str, Any]) -> tuple[Any, Watched]:
    """Start an engine in this process."""
    from vllm import LLM

    ours: dict[str, Any] = {}
    if headway:
        ours = {
            "scheduler_cls": "headway.vllm.SyncScheduler",
            "additional_config": {"headway": {"policy": "headway", "overload": "demote"}},
        }
    common = {
        "model": str(folder),
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 512,
        "block_size": BLOCK,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 256,
        "kv_cache_memory_bytes": 1 << 28,
        "enable_prefix_caching": False,
    }
    llm = LLM(**{**common, **extra, **ours})
    return llm, Watched(llm.llm_engine.engine_core.engine_core.scheduler)


def prompts(feature: Feature) -> list[list[int]]:
    """Return as many prompts, short and long, as are asked at once."""
    rng = Random(0)
    made = []
    for _ in range(feature.num_requests):
        length = rng.randrange(20, feature.longest)
        few = [rng.randrange(tiny.LETTERS) for _ in range(8 if feature.repeats else length)]
        made.append((few * length)[:length])
    return made


def parameters(feature: Feature, index: int) -> Any:
    """Return what a request asks for; those with a grammar end where it does."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    grammar = None
    if feature.has_grammars:
        grammar = (
            StructuredOutputsParams(json=SCHEMA)
            if index % 2
            else StructuredOutputsParams(regex=PLATE)
        )
    return SamplingParams(
        max_tokens=40 if not feature.has_grammars else 90,
        ignore_eos=not feature.has_grammars,
        structured_outputs=grammar,
        extra_args=PROMISES[index % len(PROMISES)],
        **{"temperature": 0.0, **feature.sampling},
    )


def talk(llm: Any, feature: Feature, adapters: list[Any]) -> list[Any]:
    """Hold all conversations; return the tokens of every answer, and texts where grammars are."""
    said = prompts(feature)
    answers: list[Any] = []
    for turn in range(feature.num_rounds):
        outputs = llm.generate(
            [{"prompt_token_ids": tokens} for tokens in said],
            [parameters(feature, i) for i in range(len(said))],
            lora_request=[adapters[i % len(adapters)] for i in range(len(said))],
            use_tqdm=False,
        )
        for output in outputs:
            answers.append([list(one.token_ids) for one in output.outputs])
            if feature.has_grammars:
                answers.append(output.outputs[0].text)
        said = [
            [*tokens, *output.outputs[0].token_ids, 10 + turn, i]
            for i, (tokens, output) in enumerate(zip(said, outputs, strict=True))
        ]
    return answers


def serve(name: str, folder: Path, headway: bool) -> dict[str, Any]:
    """Try a feature on one engine."""
    from vllm.lora.request import LoRARequest

    feature = FEATURES[name]
    llm, watched = engine_of(folder / "model", headway, feature.engine)
    adapters = [
        LoRARequest(f"adapter {i}", i, str(folder / f"adapter{i}"))
        for i in range(1, feature.num_adapters + 1)
    ]
    answers = talk(llm, feature, adapters or [None])
    return {"answers": answers, **watched.counts()}


def embed(name: str, folder: Path, headway: bool) -> dict[str, Any]:
    """Embed forty texts on one engine."""
    _, engine = EMBEDDINGS[name]
    extra = {"runner": "pooling", "max_num_batched_tokens": 512, **engine}
    llm, watched = engine_of(folder / "model", headway, extra)
    asked = Feature(num_requests=40)
    outputs = llm.embed([{"prompt_token_ids": p} for p in prompts(asked)], use_tqdm=False)
    return {"answers": [o.outputs.embedding for o in outputs], **watched.counts()}


def write(name: str, folder: Path) -> None:
    """Write what a feature needs."""
    if name in EMBEDDINGS:
        EMBEDDINGS[name][0](folder / "model")
        return
    FEATURES[name].model(folder / "model")
    for i in range(1, FEATURES[name].num_adapters + 1):
        tiny.adapter(folder / f"adapter{i}", i)


def main(name: str) -> dict[str, Any]:
    """Return what stock vLLM and Headway made of a feature."""
    import vllm  # noqa: F401  # Once for both engines.

    run = embed if name in EMBEDDINGS else serve
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as scratch, fork.Pool(1, maxtasksperchild=1) as pool:
        folder = Path(scratch)
        pool.apply(write, (name, folder))
        return {who: pool.apply(run, (name, folder, who == "headway")) for who in SCHEDULERS}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(sys.argv[1])))
