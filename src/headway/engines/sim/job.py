"""A request as the simulated engine holds it; the only place that knows its true length."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from headway.engines.virtual import Outcome, VirtualCall

TokensKey = tuple[str, int] | tuple[bytes, int | str, int]
"""A request and how many of its tokens; or the chain so far, the next id and tokens of that."""


def chain_digests(hash_ids: Sequence[int | str], hash_tokens: int) -> list[bytes]:
    """Return for each id what stands for all ids before it; 16 bytes, so never alike by chance."""
    digests = [b""]
    for one in hash_ids[:-1]:
        text = f"{hash_tokens} {one!r}".encode()
        digests.append(hashlib.blake2b(digests[-1] + text, digest_size=16).digest())
    return digests


class Job:
    """Progress of one request. Sizes in tokens, as vLLM counts them.

    ``num_computed`` counts tokens with KV (or in flight); the newest token has none yet.
    ``num_placeholders`` are output tokens scheduled but not seen yet (asynchronous only).
    ``num_stale`` of the ``num_in_flight`` tokens were scheduled before a preemption: their
    output is delivered, but nobody may resume before it is. ``host_tokens`` wait in host
    memory. ``num_blocks`` is what the request holds. ``emits`` tells that its prompt is done:
    each step gives it a token.
    """

    __slots__ = (
        "_before",
        "call",
        "emits",
        "host_tokens",
        "max_output",
        "num_blocks",
        "num_chain",
        "num_computed",
        "num_full_known",
        "num_in_flight",
        "num_output",
        "num_placeholders",
        "num_preemptions",
        "num_prompt",
        "num_stale",
        "outcome",
        "request_id",
        "running",
        "stop_after",
        "table",
        "times",
    )

    def __init__(self, call: VirtualCall, outcome: Outcome) -> None:
        self.call = call
        self.outcome = outcome
        self.times = outcome.emitted_at_s
        self.request_id = call.request_id
        self.num_prompt = call.num_prompt_tokens
        self.num_chain = call.num_chain_tokens
        self._before: list[bytes] = []
        self.max_output = call.max_output_tokens or call.num_output_tokens
        self.stop_after = min(call.num_output_tokens, self.max_output)
        self.num_output = 0
        self.num_computed = 0
        self.num_placeholders = 0
        self.num_in_flight = 0
        self.num_stale = 0
        self.num_preemptions = 0
        self.num_blocks = 0
        self.num_full_known = 0
        self.host_tokens = 0
        self.running = False
        self.emits = False
        self.table: list[object] = []

    @property
    def num_tokens(self) -> int:
        """Prompt and emitted tokens together."""
        return self.num_prompt + self.num_output

    def tokens_key(self, end: int) -> TokensKey:
        """Return what the first *end* tokens are called; equal keys mean equal tokens.

        A constant effort: what precedes each id of the chain is summed up once.
        """
        if end > self.num_chain:
            return (self.request_id, end)
        call = self.call
        if not self._before:
            self._before = chain_digests(call.hash_ids, call.hash_tokens)
        index = (end - 1) // call.hash_tokens
        return (self._before[index], call.hash_ids[index], end - index * call.hash_tokens)

    def enter(self, at_s: float, phase: str) -> None:
        """Note that a phase begins."""
        phases = self.outcome.phases
        if not phases or phases[-1][1] != phase:
            phases.append((at_s, phase))
