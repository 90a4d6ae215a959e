"""``trt_noevict``: TensorRT-LLM's ``GUARANTEED_NO_EVICT`` with chunked context.

From its capacity scheduler (``batch_manager/capacityScheduler.cpp``): what runs keeps the
blocks it needs to completion; the queue is taken in order and stops at the first request
whose prompt and ``max_tokens`` do not fit beside them. As ORCA's reservation, but prompts are
cut to the token budget. Differs: it does not wait for a prefix another prompt is computing.
"""

from __future__ import annotations

from dataclasses import replace

from headway.kit.parts import Parts
from headway.kit.simple import plain_parts
from headway.rivals.reserved import Reserved


def parts(chunk_tokens: int | None = None) -> Parts:
    """A request starts when its longest possible output fits; nobody is ever preempted.

    Args:
        chunk_tokens: ``max_num_tokens``, the engine's when ``None``.
    """
    return replace(plain_parts(chunk_tokens), gate=Reserved())
