"""How long a task can wait: AccelGen's iteration-level priority (arXiv 2503.13737)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from headway.policy.draft import Draft
from headway.request import Request
from headway.slo import Slo

NOTHING = Slo()


@dataclass(slots=True)
class Task:
    """What a live request wants of the next step.

    Attributes:
        left_s: Seconds until it must begin to run; tasks are served in ascending order of it.
            ``inf`` when nothing is promised, ``-inf`` when it waited too long.
        promise_s: The promise its iteration is held to: the gap of a decode, the first token
            of a prompt, the share of one iteration in a completion time.
        decodes: Whether it wants a token rather than prompt work.
        is_urgent: Whether it would be late unless it runs in the next step.
    """

    request: Request
    left_s: float
    promise_s: float
    decodes: bool
    is_urgent: bool


class Order(Protocol):
    """Ranks everyone who wants something of the next step."""

    def tasks(self, draft: Draft, step_s: float, chunk_tokens: float) -> list[Task]:
        """Return the live requests' tasks, the first to be served first.

        Args:
            step_s: The longest a step lasts now.
            chunk_tokens: Mean prompt tokens of a step that computes prompts.
        """


def online_left_s(slo: Slo, request: Request, now_s: float, steps_s: float) -> float:
    """Return ``T_r = SLO - waited - remaining_steps * T_step,max``.

    Args:
        now_s: When the step being planned begins.
        steps_s: Seconds of the steps until the next token comes out, each at its longest.
    """
    last_s = request.last_token_at_s
    if last_s is None:
        return (
            math.inf if slo.ttft_s is None else request.arrived_at_s + slo.ttft_s - now_s - steps_s
        )
    return math.inf if slo.tbt_s is None else last_s + slo.tbt_s - now_s - steps_s


def offline_allowance_s(slo: Slo, request: Request, prompt_steps: float) -> float:
    """Return the seconds one iteration may take so that the completion time is kept.

    What is left of it, counted from the last token (or the arrival), in equal shares for the
    iterations that remain: those of the prompt and one for each token still predicted. An
    iteration that came early or late changes the shares of those after it.

    Returns:
        ``inf`` when no completion time is promised.
    """
    if slo.jct_s is None:
        return math.inf
    tokens = max(request.predicted_output_tokens - request.num_output_tokens, 1)
    return (request.arrived_at_s + slo.jct_s - request.silent_since_s) / (prompt_steps + tokens - 1)


def time_left_s(
    slo: Slo, request: Request, now_s: float, step_s: float, chunk_tokens: float, decodes: bool
) -> tuple[float, float]:
    """Return a task's ``left_s`` and ``promise_s``; see :class:`Task`.

    The paper's T_r online (first token, gaps) and offline (completion time); the tighter counts.
    """
    left = all_steps = 1.0
    if not decodes:
        left = math.ceil(max(request.remaining_prefill_tokens, 1) / chunk_tokens)
        all_steps = max(math.ceil(request.prefill_target_tokens / chunk_tokens), left)
    allowance_s = offline_allowance_s(slo, request, all_steps)
    left_s = min(
        online_left_s(slo, request, now_s, left * step_s),
        all_steps * allowance_s - (now_s - request.silent_since_s) - left * step_s,
    )
    promise_s = slo.ttft_s if request.last_token_at_s is None else slo.tbt_s
    return left_s, min(math.inf if promise_s is None else promise_s, allowance_s)


class ByTimeLeft(Order):
    """Ascending T_r. Urgent: would be late if it waited for one more step of full length.

    A step need not heed gaps that a step of the decodes alone would break.

    Args:
        late_last: Requests whose promise is broken, streams too, come behind those whose promise
            is alive. Nothing is known of what the paper does with them; by the letter of T_r
            they would go first.
    """

    def __init__(self, late_last: bool = True) -> None:
        self._late_last = late_last

    def tasks(self, draft: Draft, step_s: float, chunk_tokens: float) -> list[Task]:
        """See :class:`Order`; who has waited too long at all goes first."""
        tasks = []
        decode_s = draft.given.latency.predict_s(draft.shape)
        for request in _startable(draft):
            decodes = request.request_id in draft.given.live.decoding
            slo = request.slo if request.has_claim or not self._late_last else NOTHING
            left_s, promise_s = time_left_s(
                slo, request, draft.given.ref_s, step_s, chunk_tokens, decodes
            )
            if promise_s <= decode_s:
                promise_s = math.inf
            if draft.given.is_overdue(request):
                left_s = -math.inf
            tasks.append(Task(request, left_s, promise_s, decodes, left_s < step_s))
        tasks.sort(key=lambda t: (t.left_s, t.request.order))
        return tasks


class ByArrivalTime(Order):
    """Without A2: running streams always, prompts first come, first served."""

    def tasks(self, draft: Draft, step_s: float, chunk_tokens: float) -> list[Task]:
        """See :class:`Order`; ``left_s`` is the arrival, so gamma is a window of arrivals."""
        decode_s = draft.given.latency.predict_s(draft.shape)
        tasks = []
        for request in _startable(draft):
            decodes = request.request_id in draft.given.live.decoding
            slo = request.slo if request.has_claim else NOTHING
            promise_s = slo.ttft_s if request.last_token_at_s is None else slo.tbt_s
            if promise_s is None or promise_s <= decode_s:
                promise_s = math.inf
            tasks.append(Task(request, request.arrived_at_s, promise_s, decodes, decodes))
        tasks.sort(key=lambda t: (not t.decodes, t.left_s, t.request.order))
        return tasks


def _startable(draft: Draft) -> Iterator[Request]:
    """Yield all but those who wait for what no plan can give them."""
    return (r for r in draft.given.live.requests.values() if not r.hindrance)
