"""Greedy answers compared token by token, as hashes: no text and no token leaves.

Half of the requests promise a span so long that it is kept, but are claims; the other half have no
promise and give way. In a KV cache of a third of what all need, that preempts.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from headway.bench.access import Access, post, start_of
from headway.bench.words import in_one_line, message_of
from headway.engines.vllm.api_server import merged_config
from headway.engines.vllm.start_checks import additional_config
from headway.errors import HeadwayError
from headway.units import blocks_for
from headway.workloads.realtext import made_up_prompt

NUM_PROMPTS = 32
NUM_TOKENS = 48
SHORTEST, LONGEST = 20, 140
"""Tokens of a prompt, about."""

TINY_CACHE_TOKENS = 1280
"""About a third of what the prompts and their answers need at once."""

MOST_BLOCK_TOKENS = 64
"""Victims shorter than a block have nothing to copy."""

CPU_BLOCK_TOKENS = 32
"""vLLM's own choice on CPUs is 128."""

TINY_MODEL_TOKENS = 512
"""The longest request, for vLLM to accept so small a cache."""

SWAP_TOKENS = 448
"""Room on the host for some victims, not for all: the others' KV is computed again."""

CLAIM = {"slo_ttft_ms": 60_000, "slo_tbt_ms": 5_000}
TIMEOUT_S = 600.0
MAX_BODY_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class TokenComparison:
    """How often greedy answers differ.

    Attributes:
        num_answers: Answers compared.
        num_differing: Of them, those of Headway under pressure that are not stock's.
        num_differing_of_stock: Those of stock that are not its own in smaller batches.
        preempted: Requests that lost their place, by ``"swap"`` and ``"recompute"``.
    """

    num_answers: int
    num_differing: int
    num_differing_of_stock: int
    preempted: dict[str, int]


def tiny_arguments(
    features: Mapping[str, Any], vllm_args: Sequence[str] = ()
) -> tuple[list[str], bool]:
    """Return the arguments that make the cache small, and whether swap is among them.

    Args:
        features: What the server told of itself with a cache of its usual size.
        vllm_args: Arguments it was started with; their ``--additional-config`` is kept.

    Raises:
        UserError: That is no JSON object.
    """
    sizes = features["sizes"]
    size, groups = sizes["block_tokens"], max(sizes["kv_groups"], 1)
    args = ["--max-model-len", str(TINY_MODEL_TOKENS)]
    if size > MOST_BLOCK_TOKENS and features["device"] == "cpu":
        args += ["--block-size", str(size := CPU_BLOCK_TOKENS)]
    args += ["--num-gpu-blocks-override", str(blocks_for(TINY_CACHE_TOKENS, size) * groups)]
    swaps = (
        sizes["block_bytes"] is not None
        and not features["on"]["KV connector"]
        and size <= MOST_BLOCK_TOKENS
    )
    if swaps:
        token_bytes = sizes["block_bytes"] / sizes["block_tokens"]
        gib = blocks_for(SWAP_TOKENS, size) * size * token_bytes / 2**30
        config = merged_config(additional_config(vllm_args), {"options": {"swap": "always"}})
        args += ["--swap-gib", f"{gib:.6f}", "--additional-config", json.dumps(config)]
    return args, swaps


def differing(one: Sequence[str], other: Sequence[str]) -> int:
    """Return how many answers are not the same."""
    return sum(a != b for a, b in zip(one, other, strict=True))


async def answers(
    url: str, model: str, access: Access, at_once: int = NUM_PROMPTS
) -> tuple[str, ...]:
    """Return the hash of every answer's token ids, *at_once* requests at a time.

    Raises:
        HeadwayError: A request was not answered whole.
    """
    hashes: list[str] = []
    async with access.session(TIMEOUT_S) as session:
        for first in range(0, NUM_PROMPTS, at_once):
            several = range(first, min(first + at_once, NUM_PROMPTS))
            asked = (_answer(session, url, body_of(model, i)) for i in several)
            hashes += await asyncio.gather(*asked)
    return tuple(hashes)


def body_of(model: str, index: int) -> dict[str, Any]:
    """Return request *index*: a piece of Python's documentation to be continued."""
    num_tokens = SHORTEST + index * 37 % (LONGEST - SHORTEST)
    return {
        "model": model,
        "prompt": made_up_prompt(num_tokens, index),
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
        **({"vllm_xargs": CLAIM} if index % 2 else {}),
    }


async def _answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> str:
    try:
        async with await post(session, f"{url}/v1/completions", body) as response:
            text = await start_of(response, MAX_BODY_BYTES)
        if response.status != 200:
            why = in_one_line(message_of(text))[:200]
            raise HeadwayError(f"{url} answered HTTP {response.status} to a completion: {why}.")
        ids = json.loads(text)["choices"][0]["token_ids"]
        if len(ids) != NUM_TOKENS:
            raise HeadwayError(f"{url} gave {len(ids)} tokens where {NUM_TOKENS} were asked for.")
    except (aiohttp.ClientError, OSError) as error:
        why = str(error) or type(error).__name__
        raise HeadwayError(f"{url} broke off a completion: {why}.") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise HeadwayError(f"{url} did not answer a completion as vLLM does.") from None
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]
