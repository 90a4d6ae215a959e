"""``fcfs``: what stock vLLM does by default.

vLLM V1's scheduler (Kwon et al., SOSP 2023, and its later chunked prefill): running requests
first, then the queue in order while their whole prompt fits the free blocks, a fixed token
budget, the youngest preempted. Differs: preemption is planned before the step instead of
being met inside it, which frees the same blocks.
"""

from __future__ import annotations

from headway.kit.options import positive_tokens
from headway.kit.parts import Parts
from headway.kit.simple import plain_parts


def parts(chunk_tokens: int | None = None) -> Parts:
    """What stock vLLM would do, through the same driver: promises decide nothing.

    Args:
        chunk_tokens: Budget of a step, the engine's when ``None``.
    """
    if chunk_tokens is not None:
        positive_tokens("chunk_tokens", chunk_tokens)
    return plain_parts(chunk_tokens)
