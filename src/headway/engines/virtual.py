"""What every engine under a virtual clock is fed, and what its clients see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a virtual run; ``xargs`` as a client would send them.

    Attributes:
        hash_ids: What the prompt begins with: each id stands for ``hash_tokens`` tokens, and means
            them only together with all ids before it. Two prompts share exactly the tokens up to
            where their chains part; what follows a chain is the call's own, and so is its answer.
        hash_tokens: The prompt may cut the last id short, and so a single id can stand for any
            number of tokens.
    """

    request_id: str
    arrived_at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    xargs: Mapping[str, Any] = field(default_factory=dict)
    max_output_tokens: int | None = None
    priority: int = 0
    abort_at_s: float | None = None
    hash_ids: tuple[int | str, ...] = ()
    hash_tokens: int = 512

    @property
    def num_chain_tokens(self) -> int:
        """Tokens of the prompt that the chain stands for."""
        return min(len(self.hash_ids) * self.hash_tokens, self.num_prompt_tokens)


@dataclass(slots=True)
class Outcome:
    """What the client of a virtual request saw, and what the engine did with it meanwhile.

    Attributes:
        emitted_at_s: When each output token reached the client.
        finish_reason: ``stop``, ``length``, ``abort``, or ``None`` while it runs.
        stop_reason: For a refused or rejected request, the answer its client got.
        phases: When each phase began: ``queued``, ``prefill``, ``decode``, ``preempted``, or
            ``swapped`` when the host keeps the KV of a preempted request.
    """

    call: Call
    emitted_at_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None
    ended_at_s: float | None = None
    phases: list[tuple[float, str]] = field(default_factory=list)


class StepRow(NamedTuple):
    """One executed step. ``predicted_s`` and ``promised_s`` are 0 where nobody predicted.

    ``reserved_tokens`` is what running requests are predicted to need beyond what they hold;
    ``held_tokens`` counts whole blocks.
    """

    begins_s: float
    ends_s: float
    predicted_s: float
    promised_s: float
    num_prefill_tokens: int
    num_decodes: int
    num_running: int
    num_waiting: int
    held_tokens: int
    reserved_tokens: int
