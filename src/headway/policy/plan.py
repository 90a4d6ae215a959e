"""What the core decides for one step: values, comparable and serialisable, each with a reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartRisk:
    """What a plan knows against a live promise that starts for the first time; it decides nothing.

    Attributes:
        steps_to_spare: The time its first token has left, in steps like this one; ``inf`` where
            no time is promised for it.
        victims: Preemptions expected if it starts; 0 where nobody had to look.
        redo_pauses: The time to compute its KV again half-way, in the longest pauses it allows.
    """

    steps_to_spare: float
    victims: float
    redo_pauses: float


@dataclass(frozen=True, slots=True)
class Chunk:
    """Compute up to *num_tokens* prompt tokens of a request.

    ``admit`` is true when the request does not run yet: the driver starts (or resumes) it.
    """

    request_id: str
    num_tokens: int
    admit: bool
    reason: str
    risk: StartRisk | None = None


@dataclass(frozen=True, slots=True)
class Preempt:
    """Take the KV of a running request away; ``how`` is ``"recompute"`` or ``"swap"``."""

    request_id: str
    how: str
    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Answer 429 at once. ``retry_after_s`` is when the same request could be kept."""

    request_id: str
    retry_after_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class Reject:
    """Answer with an error at once: this request can never be served."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Cap:
    """End a running request as if its length limit were reached: it owns the whole cache."""

    request_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class PlanPrices:
    """What a plan reckoned with, in promises.

    Attributes:
        per_token: What the time of one prompt token could keep: 0 with nothing to compute, one
            over the tokens of a typical claim when every second counts.
        least_gap_s: Shorter gaps cost the others more than they are worth.
    """

    per_token: float
    least_gap_s: float


@dataclass(frozen=True, slots=True)
class SharedPrices(PlanPrices):
    """The same where targets are stated, or several tenants pay.

    Attributes:
        times: What promises of a class or tenant count, times their own weight, for its target;
            absent is 1.
        gives_way: Tenants who have had so much that the others go first.
    """

    times: Mapping[str, float]
    gives_way: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step. Running requests that decode compute one token each unless held.

    Attributes:
        token_budget: Tokens of the whole step, decodes included.
        chunks: Prompt work in order; running prompts that are absent sit this step out.
            At most the last chunk in order of need is partial, and it is the largest, so
            that an engine with a single per-request cap can carry the plan out.
        chunk_cap_tokens: That cap; 0 when no chunk is cut short beside others.
        hold: Running decodes that sit this step out.
        predicted_s: Expected seconds of the step, and ``promised_s`` its upper quantile.
        demoted: Requests whose promise does not fit beside the others' (ids, for the story).
        prices: What prompts and gaps cost in this plan; ``None`` where nobody has a prompt.
    """

    token_budget: int
    chunks: tuple[Chunk, ...] = ()
    chunk_cap_tokens: int = 0
    hold: tuple[str, ...] = ()
    preempt: tuple[Preempt, ...] = ()
    refuse: tuple[Refuse, ...] = ()
    reject: tuple[Reject, ...] = ()
    cap: tuple[Cap, ...] = ()
    demoted: tuple[str, ...] = ()
    predicted_s: float = 0.0
    promised_s: float = 0.0
    prices: PlanPrices | None = None
