"""An engine under a virtual clock, whoever's it is: its sizes, what it is fed, what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from headway.errors import UserError
from headway.latency.model import StepShape
from headway.metrics.kv_split import wanted_tokens
from headway.policy.live_requests import LiveRequests
from headway.policy.plan import StepPlan
from headway.units import GIB


@dataclass(frozen=True, slots=True)
class VirtualEngine:
    """One server. Sizes in blocks and tokens, as vLLM's own arguments.

    Attributes:
        num_blocks: KV blocks requests can get; vLLM's own count is one more, its null block.
        asynchronous: Whether a step is planned while the one before still runs.
        prefix_caching: Whether full blocks are found again by later requests (LRU).
        host_blocks: Blocks of host memory for swapped KV; 0 turns every swap into a recompute.
        copy_gib_per_s: Bandwidth of the link to the host, one copy at a time.
        kv_bytes_per_token: Bytes of KV of one token over all layers; the default is that of
            an 8B model with 8 KV heads in 16 bits.

    Raises:
        UserError: A size is not positive.
    """

    num_blocks: int = 1000
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    asynchronous: bool = False
    prefix_caching: bool = False
    host_blocks: int = 0
    copy_gib_per_s: float = 25.0
    kv_bytes_per_token: int = 131_072

    def __post_init__(self) -> None:
        for size in fields(VirtualEngine):
            value = getattr(self, size.name)
            least = 0 if size.name == "host_blocks" else 1e-9
            if not isinstance(value, bool) and not value >= least:
                bound = "at least 0" if least == 0 else "greater than 0"
                raise UserError(f"The engine's {size.name} must be {bound}, not {value!r}.")

    @property
    def copy_bytes_per_s(self) -> float:
        """Bandwidth of the link in bytes."""
        return self.copy_gib_per_s * GIB

    @property
    def block_copy_s(self) -> float:
        """Seconds a block takes over the link, either way."""
        return self.block_size * self.kv_bytes_per_token / self.copy_bytes_per_s


@dataclass(frozen=True, slots=True)
class VirtualCall:
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

    call: VirtualCall
    emitted_at_s: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | None = None
    ended_at_s: float | None = None
    phases: list[tuple[float, str]] = field(default_factory=list)


class HostLink:
    """The link to host memory: one copy at a time, so that a step waits for those before it.

    Attributes:
        idle_at_s: When the last copy so far ends.
        num_blocks_copied: Blocks moved, either way.
    """

    def __init__(self, block_copy_s: float) -> None:
        self.block_copy_s = block_copy_s
        self.idle_at_s = 0.0
        self.num_blocks_copied = 0

    def copy(self, num_blocks: int, now_s: float) -> None:
        """Queue a copy."""
        self.idle_at_s = max(self.idle_at_s, now_s) + num_blocks * self.block_copy_s
        self.num_blocks_copied += num_blocks


class StepRow(NamedTuple):
    """One executed step. ``predicted_s`` and ``promised_s`` are 0 where nobody predicted.

    ``reserved_tokens`` is what running requests are predicted to need beyond what they hold
    (:func:`~headway.metrics.kv_split.wanted_tokens`); ``held_tokens`` counts whole blocks.
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

    @classmethod
    def of(
        cls,
        span_s: tuple[float, float],
        shape: StepShape,
        num_running: int,
        num_waiting: int,
        held_tokens: int,
        plan: StepPlan | None,
        live: LiveRequests | None,
    ) -> StepRow:
        """Return the row of a step that begins; without *plan* and *live* where nobody plans."""
        return cls(
            *span_s,
            plan.predicted_s if plan is not None else 0.0,
            plan.promised_s if plan is not None else 0.0,
            shape.num_prefill_tokens,
            shape.num_decodes,
            num_running,
            num_waiting,
            held_tokens,
            wanted_tokens(live) if live is not None else 0,
        )
