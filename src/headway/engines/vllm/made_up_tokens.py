"""Token ids for virtual requests: prompts share exactly what their chains have in common.

Every id of a chain, and what is a call's own, begins with a token that only it has. The ids are of
no vocabulary: nothing is computed from them, vLLM only hashes them.
"""

from __future__ import annotations

import hashlib

from headway.engines.virtual import VirtualCall

STOP, FILLER = 2, 3
FIRST_TELLING = 1024
"""Telling tokens are never below this, so never one of the two above."""


def prompt_tokens(call: VirtualCall) -> list[int]:
    """Return the prompt of *call*: its chain, then what is its own."""
    tokens: list[int] = []
    for one in call.hash_ids:
        _extend(tokens, _telling(f"shared {one!r}"), call.hash_tokens, call.num_prompt_tokens)
    own = call.num_prompt_tokens - len(tokens)
    _extend(tokens, own_token(call.request_id), own, call.num_prompt_tokens)
    return tokens


def own_token(request_id: str) -> int:
    """Return the token that answers are made of: nobody finds those to an equal prompt."""
    return _telling(f"own {request_id}")


def _extend(tokens: list[int], telling: int, num_tokens: int, most: int) -> None:
    count = min(num_tokens, most - len(tokens))
    tokens.extend([telling, *[FILLER] * (count - 1)][:count])


def _telling(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
    return FIRST_TELLING + int.from_bytes(digest)
