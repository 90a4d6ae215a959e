"""A request as the policy core sees it: its promise, its progress, its story."""

from __future__ import annotations

from enum import Enum

from headway.errors import InvariantError
from headway.slo import Slo

GAPS_KEPT_PERCENT = 99
"""A gap promise is kept when at least so many of a hundred gaps keep it."""

LATE_GAPS_FORGIVEN = 1.0 - GAPS_KEPT_PERCENT / 100
"""The share of the gaps that may be late."""

NATURAL_ENDS = ("stopped", "length")
"""Reasons for which an answer is whole."""

STORY_LINES = 24
"""Lines kept of a request's story; the oldest but the first are dropped beyond it."""


class State(Enum):
    """Where a request is. Every move is listed in :data:`MOVES`."""

    WAITING = "waiting"
    RUNNING = "running"
    PREEMPTED = "preempted"
    FINISHED = "finished"


MOVES: dict[State, frozenset[State]] = {
    State.WAITING: frozenset({State.RUNNING, State.FINISHED}),
    State.RUNNING: frozenset({State.PREEMPTED, State.FINISHED}),
    State.PREEMPTED: frozenset({State.RUNNING, State.FINISHED}),
    State.FINISHED: frozenset(),
}
"""Allowed transitions. A refused or aborted request is FINISHED with that reason."""


class Standing(Enum):
    """What a request may claim against the others."""

    PROMISED = "promised"
    LOST = "lost"
    """Its promise is broken for good; served as best effort."""
    UNPROMISED = "unpromised"


class Request:
    """Progress of one live request. Sizes in tokens, instants in seconds of the driver's clock.

    ``num_computed_tokens`` counts tokens whose KV exists; ``prefill_target_tokens`` is how
    many must exist before the request can emit again (the prompt, and after a preemption by
    recompute also the tokens emitted so far). ``due_at_s`` is when a waiting request's next
    token is due by its promise; ``turn_at_s`` is when first come, first served would have brought
    the first token of one that asked for no promise; ``order`` is its rank of arrival; ``work_s``
    estimates the seconds of the engine it will take; ``tokens_a_step`` is what it gains in a step
    of decoding, above 1 where drafts are accepted; ``promised_gap_s`` is the gap its tokens are
    planned for, ``None`` where none was promised or it may have one token only;
    ``is_leftover`` tells that it was started with capacity no claim wanted, ``is_expected``
    that it was refused before and came back when it was told to; ``last_try`` is how likely a
    refusal is final (:class:`~headway.policy.events.Arrived`); ``hindrance`` is why the engine
    could not start it now, empty when it could. While a request waits, it holds the KV of
    ``num_computed_tokens`` if that was loaded from elsewhere,
    ``num_found_tokens`` of it are in the prefix cache, ``num_held_tokens`` of them held by running
    requests; once it runs, ``num_shared_tokens`` were held by others when it started, and
    ``num_cached_tokens`` were found in a cache when it first did. While it waits, ``computed_by``
    (an id, or nothing) computes what it lacks next: both begin with the same ``num_common_tokens``.
    """

    __slots__ = (
        "arrived_at_s",
        "computed_by",
        "due_at_s",
        "first_token_at_s",
        "hindrance",
        "is_expected",
        "is_leftover",
        "last_token_at_s",
        "last_try",
        "max_output_tokens",
        "num_cached_tokens",
        "num_common_tokens",
        "num_computed_tokens",
        "num_found_tokens",
        "num_held_tokens",
        "num_late_gaps",
        "num_output_tokens",
        "num_preemptions",
        "num_prompt_tokens",
        "num_shared_tokens",
        "order",
        "predicted_output_tokens",
        "prefill_target_tokens",
        "promised_gap_s",
        "queued_at_s",
        "request_id",
        "slo",
        "standing",
        "state",
        "story",
        "tokens_a_step",
        "turn_at_s",
        "work_s",
    )

    def __init__(
        self,
        request_id: str,
        slo: Slo,
        arrived_at_s: float,
        num_prompt_tokens: int,
        max_output_tokens: int,
    ) -> None:
        self.request_id = request_id
        self.slo = slo
        self.arrived_at_s = arrived_at_s
        self.queued_at_s = arrived_at_s
        self.due_at_s = float("inf")
        self.turn_at_s = float("inf")
        self.order = 0
        self.work_s = 0.0
        self.tokens_a_step = 1.0
        self.num_prompt_tokens = num_prompt_tokens
        self.max_output_tokens = max_output_tokens
        self.predicted_output_tokens = max_output_tokens
        self.promised_gap_s = _planned_gap_s(slo) if max_output_tokens > 1 else None
        self.prefill_target_tokens = num_prompt_tokens
        self.num_computed_tokens = 0
        self.num_found_tokens = 0
        self.num_held_tokens = 0
        self.num_shared_tokens = 0
        self.num_common_tokens = 0
        self.num_cached_tokens = 0
        self.computed_by = ""
        self.num_output_tokens = 0
        self.num_preemptions = 0
        self.hindrance = ""
        self.is_leftover = False
        self.is_expected = False
        self.last_try = 1.0
        self.num_late_gaps = 0
        self.first_token_at_s: float | None = None
        self.last_token_at_s: float | None = None
        self.state = State.WAITING
        self.standing = Standing.PROMISED if slo.is_promise else Standing.UNPROMISED
        self.story: list[tuple[float, str]] = [(arrived_at_s, "arrived")]

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id!r}, {self.state.value}, {self.standing.value}, "
            f"computed {self.num_computed_tokens}/{self.num_prompt_tokens}"
            f"+{self.num_output_tokens})"
        )

    def move(self, to: State, at_s: float, why: str) -> None:
        """Change state, or raise with the story when :data:`MOVES` forbids it."""
        if to not in MOVES[self.state]:
            raise InvariantError(
                f"{self.request_id} cannot go from {self.state.value} to {to.value} ({why}); "
                f"its story: {self.tell()}"
            )
        self.state = to
        self.note(at_s, why)

    def takes_kv(self, num_cached_tokens: int) -> None:
        """Begin or resume, with so many tokens of KV found in a cache."""
        self.hindrance = self.computed_by = ""
        self.prefill_target_tokens = self.num_tokens
        self.num_computed_tokens = num_cached_tokens
        self.num_shared_tokens = min(self.num_held_tokens, num_cached_tokens)
        self.num_found_tokens = self.num_held_tokens = 0
        if not self.num_preemptions:
            self.num_cached_tokens = num_cached_tokens

    def loses_kv(self) -> None:
        """Be preempted: what was computed is to be computed again."""
        self.num_computed_tokens = self.num_shared_tokens = 0
        self.prefill_target_tokens = self.num_tokens
        self.num_preemptions += 1

    def note(self, at_s: float, what: str) -> None:
        """Add a line to the story, keeping its length bounded."""
        if len(self.story) >= STORY_LINES:
            del self.story[1]
        self.story.append((at_s, what))

    def tell(self) -> str:
        """Return the story as one line, instants relative to the arrival."""
        return "; ".join(f"+{at - self.arrived_at_s:.3f}s {what}" for at, what in self.story)

    @property
    def num_tokens(self) -> int:
        """Prompt and emitted tokens together."""
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def remaining_prefill_tokens(self) -> int:
        """Tokens still to compute before the next emission; 0 while decoding."""
        # Not by num_ready_tokens: a plan asks it of every claim that waits.
        return max(self.prefill_target_tokens - self.num_computed_tokens - self.num_found_tokens, 0)

    @property
    def remaining_output_tokens(self) -> int:
        """Output tokens still to come, as they are predicted; at least one."""
        return max(self.predicted_output_tokens - self.num_output_tokens, 1)

    @property
    def steps_left(self) -> float:
        """Steps of decoding until its last token, as it is predicted; at least one token's."""
        return self.remaining_output_tokens / self.tokens_a_step

    @property
    def num_ready_tokens(self) -> int:
        """Tokens that need not be computed: their KV is this request's, or found in the cache."""
        return self.num_computed_tokens + self.num_found_tokens

    @property
    def kv_tokens(self) -> int:
        """Tokens of KV the request holds now."""
        if self.state is not State.RUNNING:
            return 0
        if self.num_computed_tokens < self.prefill_target_tokens:
            return self.num_computed_tokens
        return self.num_prompt_tokens + self.num_output_tokens

    @property
    def silent_since_s(self) -> float:
        """When it had its newest token, or came: what a longest wait counts from."""
        return self.arrived_at_s if self.last_token_at_s is None else self.last_token_at_s

    @property
    def has_claim(self) -> bool:
        """Whether its promise is alive and worth planning for."""
        return self.standing is Standing.PROMISED

    def is_past_due(self, now_s: float) -> bool:
        """Return whether the time promised to its first token or end is over, by the clock."""
        slo = self.slo
        ttft_s = slo.ttft_s if self.first_token_at_s is None else None
        spans_s = (span_s for span_s in (ttft_s, slo.jct_s) if span_s is not None)
        return now_s - self.arrived_at_s > min(spans_s, default=float("inf"))

    def can_spare_a_gap(self) -> bool:
        """Return whether one late gap more still leaves the promise whole."""
        return self.slo.tbt_s is None or self.num_late_gaps < self.late_gaps_allowed()

    def has_earned_a_gap(self) -> bool:
        """Return whether the tokens it has already generated forgive one late gap more."""
        return self.slo.tbt_s is None or self.num_late_gaps < _forgiven(self.num_output_tokens)

    def late_gaps_allowed(self) -> int:
        """Late gaps the promise tolerates given the output predicted (at least so far)."""
        return _forgiven(max(self.predicted_output_tokens, self.num_output_tokens))


def _forgiven(num_output_tokens: int) -> int:
    """Return how many late gaps a stream of so many tokens may have."""
    return int((num_output_tokens - 1) * LATE_GAPS_FORGIVEN + 1e-9)


def _planned_gap_s(slo: Slo) -> float | None:
    """Return the tightest gap promised, by whatever name: between tokens, on average, at most."""
    gap_s = min(slo.least_late_s, slo.least_late_s if slo.tpot_s is None else slo.tpot_s)
    return gap_s if gap_s < float("inf") else None
