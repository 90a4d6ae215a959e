"""``fastgen``: Dynamic SplitFuse, a constant number of tokens in every forward pass.

DeepSpeed-FastGen (arXiv 2401.08671 §3): generation first; long prompts are split over several
passes and only the last one generates; short prompts, and the beginning of the next, are
composed to fill the budget exactly. With a fixed budget and first come, first served that is
what stock vLLM's chunked prefill does too, so the parts are ``fcfs``'s; the name is kept
because the literature compares with it. The budget of 768 is DeepSpeed's default ragged batch
size as we know it. Differs: when KV runs out one request is preempted, where DeepSpeed-MII
lets decodes stall and resets everybody at a deadlock.
"""

from __future__ import annotations

from headway.kit.options import positive_tokens
from headway.kit.parts import Parts
from headway.kit.simple import plain_parts


def parts(chunk_tokens: int = 768) -> Parts:
    """Passes of one size, whoever they are for: promises decide nothing.

    Args:
        chunk_tokens: Of every pass, decodes included.
    """
    return plain_parts(positive_tokens("chunk_tokens", chunk_tokens))
