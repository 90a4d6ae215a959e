"""``sarathi``: a fixed chunk, decodes first (Sarathi-Serve, arXiv 2403.02310 §4).

The paper profiles the budget that keeps a step within the gap promise; 512 is its default
for strict promises. Differs: admission and preemption are vLLM's.
"""

from __future__ import annotations

from headway.kit.options import positive_tokens
from headway.kit.parts import Parts
from headway.kit.simple import plain_parts


def parts(chunk_tokens: int = 512) -> Parts:
    """First come, first served within a fixed budget: promises decide nothing.

    Args:
        chunk_tokens: Budget of a step, decodes included.
    """
    return plain_parts(positive_tokens("chunk_tokens", chunk_tokens))
