"""The slack ledger: where each request's seconds go, kept while it runs.

The rule is that of :mod:`headway.metrics.causes`. The ledger hears events and must not spend time
per token, so what all requests in step share (how long steps took, and how far beyond their plan)
is counted once a step, and a request takes the difference of two readings when it falls in or out
of step. Of a request that was cut off, what it waited during the step in flight is ``queueing`` or
``prefill``.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from headway.metrics.causes import CAUSES
from headway.metrics.define import GAPS_KEPT_PERCENT
from headway.metrics.tale import InStep, Mark, Split, Stage, Tale, Verdict, add, charge
from headway.metrics.tally import Tallies
from headway.slo import Slo

STEPS_KEPT = 4096
"""Steps whose free KV is remembered; of a longer wait, what came before counts as queueing."""


_Step = tuple[float, float, Sequence[tuple[Tale, int]]]
"""A step in flight: when it began, what it may take, and who began in it, how often preempted."""


class SlackLedger:
    """Every live request's seconds, by cause."""

    def __init__(self, tallies: Tallies) -> None:
        self.tales: dict[str, Tale] = {}
        self.last_step_s = 0.0
        self.last_beyond_s = 0.0
        self._tallies = tallies
        self._in_step: dict[str, Tale] = {}
        self._groups: dict[tuple[str, float | None], InStep] = {}
        self._in_flight: deque[_Step] = deque()
        self._last_done_s = -math.inf
        self._run_s = 0.0
        self._beyond_s = 0.0
        # Begin, end and free KV of the last steps. Arrays of the standard library: numpy takes
        # three times as long to set one number, and reads these where they are.
        self._free = tuple(array("d", bytes(8 * STEPS_KEPT)) for _ in range(3))
        self._num_steps = 0

    # -- events ---------------------------------------------------------------------------

    def arrived(
        self, request_id: str, slo: Slo, arrived_at_s: float, num_prompt_tokens: int
    ) -> Tale:
        """A request reached the engine."""
        tally = self._tallies.of(slo.class_name)
        tale = Tale(request_id, slo, tally, arrived_at_s, num_prompt_tokens, arrived_at_s)
        self.tales[request_id] = tale
        return tale

    def preempted(self, request_id: str, at_s: float, *, swapped: bool = False) -> None:
        """A running request lost its place; *swapped* when the host keeps its KV."""
        tale = self.tales.get(request_id)
        if tale is None:
            return
        self._fall_out(tale)
        self._close(tale, at_s if tale.stage is Stage.QUEUED else self._last_done_s)
        if tale.stage is Stage.QUEUED:
            tale.first_start_at_s = at_s
        tale.stage = Stage.PREEMPTED
        tale.lost_to = "swap" if swapped else "preemption"
        tale.is_running = False
        tale.num_preemptions += 1

    def scheduled(self, at_s: float, admitted: Mapping[str, int], planned_s: float) -> None:
        """A step was begun; *planned_s* is what it may take at most, ``inf`` without a bound."""
        if not admitted:
            self._in_flight.append((at_s, planned_s, ()))
            return
        started: list[tuple[Tale, int]] = []
        for request_id in admitted:
            tale = self.tales.get(request_id)
            if tale is not None:
                tale.is_running = True
                started.append((tale, tale.num_preemptions))
        self._in_flight.append((at_s, planned_s, started))

    def done(self, at_s: float, emitted: Mapping[str, int], free_tokens: int) -> None:
        """The oldest step in flight ended; *free_tokens* of KV were free when it was planned."""
        if not self._in_flight:
            return
        begins_s, planned_s, started = self._in_flight.popleft()
        begins_s = max(begins_s, self._last_done_s)
        for tale, num_preemptions in started:
            if tale.num_preemptions == num_preemptions and tale.stage is Stage.QUEUED:
                self._start(tale, begins_s)
        joined: list[str] = []
        in_step = self._in_step
        if emitted.keys() != in_step.keys():
            joined = [i for i in emitted if i not in in_step]
            for request_id in [i for i in in_step if i not in emitted]:
                self._fall_out(in_step[request_id])
        self._advance(begins_s, at_s, planned_s, free_tokens)
        for request_id in joined:
            resumed = self.tales.get(request_id)
            if resumed is not None:
                self._token(resumed, at_s)

    def finished(
        self,
        request_id: str,
        at_s: float,
        num_output_tokens: int,
        *,
        ended_well: bool,
        was_refused: bool = False,
    ) -> Verdict:
        """A request left.

        Args:
            ended_well: Its answer came to its natural end. If not, or without any token, its end
                stands in for the token that never came.
            was_refused: The scheduler turned it away: it never waited for a token.

        Raises:
            KeyError: The request is not live here.
        """
        tale = self.tales.pop(request_id)
        self._fall_out(tale)
        slo, arrived_at_s = tale.slo, tale.arrived_at_s
        num_gaps = max(num_output_tokens - 1, 0)
        first_s, last_s = tale.first_token_at_s, tale.last_token_at_s
        attained = ended_well and first_s is not None
        if not (attained or was_refused):
            num_gaps = num_output_tokens  # The last one ends with the request.
            self._settle(tale, at_s)
        late_s = dict.fromkeys(CAUSES, 0.0)
        if tale.ttft_late_s:
            attained = False
            add(late_s, tale.ttft_late_s)
        kept = num_gaps - tale.num_late_gaps
        if slo.tbt_s is not None and 100 * kept < GAPS_KEPT_PERCENT * num_gaps:
            attained = False
            add(late_s, tale.tbt_late_s)
        lived_s = 0.0 if tale.last_token_at_s is None else tale.last_token_at_s - arrived_at_s
        if slo.jct_s is not None and lived_s > slo.jct_s:
            attained = False
            charge(late_s, tale.spent_s, lived_s - slo.jct_s)
        return Verdict(
            attained=attained,
            ttft_s=None if first_s is None else first_s - arrived_at_s,
            jct_s=None if last_s is None else last_s - arrived_at_s,
            num_late_gaps=tale.num_late_gaps,
            num_gaps=num_gaps,
            late_s=late_s,
        )

    # -- one step -------------------------------------------------------------------------

    def _advance(self, begins_s: float, at_s: float, planned_s: float, free_tokens: int) -> None:
        """Count the step once for everybody who is in step."""
        took_s = at_s - begins_s
        beyond_s = max(took_s - planned_s, 0.0)
        self.last_step_s, self.last_beyond_s = took_s, beyond_s
        self._run_s += took_s
        self._beyond_s += beyond_s
        gap_s = at_s - self._last_done_s
        for group in self._groups.values():
            group.tally.gap.add(gap_s, group.count)
            if gap_s > group.tbt_s:
                share = (gap_s - group.tbt_s) / gap_s
                own_s, error_s, between_s = group.late_s
                group.num_late += 1
                group.late_s = (
                    own_s + share * (took_s - beyond_s),
                    error_s + share * beyond_s,
                    between_s + share * (gap_s - took_s),
                )
        self._last_done_s = at_s
        index = self._num_steps % STEPS_KEPT
        all_begin_s, all_end_s, all_free = self._free
        all_begin_s[index], all_end_s[index], all_free[index] = begins_s, at_s, free_tokens
        self._num_steps += 1

    def _start(self, tale: Tale, at_s: float) -> None:
        self._close(tale, at_s)
        tale.stage = Stage.PREFILL
        tale.first_start_at_s = at_s
        tale.beyond_at_start_s = self._beyond_s

    def _token(self, tale: Tale, at_s: float) -> None:
        """A request that was not in step got a token: its first, or after a pause."""
        if tale.last_token_at_s is None:
            tale.first_token_at_s = at_s
            tale.tally.ttft.add(at_s - tale.arrived_at_s)
        else:
            tale.tally.gap.add(at_s - tale.last_token_at_s)
        self._settle(tale, at_s, brought_token=True)
        if tale.is_running:
            tale.stage = Stage.DECODE
            self._fall_in(tale, at_s)

    def _settle(self, tale: Tale, at_s: float, *, brought_token: bool = False) -> None:
        """The span under way ends, with a token or with the request: charge what of it is late."""
        self._close(tale, at_s, brought_token=brought_token)
        open_s, tale.open_s = tale.open_s, {}
        slo, last_s = tale.slo, tale.last_token_at_s
        if last_s is None:
            late_s = -math.inf if slo.ttft_s is None else at_s - tale.arrived_at_s - slo.ttft_s
            if late_s > 0 or slo.jct_s is not None:
                self._name_wait(tale, open_s, at_s)
            if late_s > 0:
                charge(tale.ttft_late_s, open_s, late_s)
        elif slo.tbt_s is not None and at_s - last_s > slo.tbt_s:
            tale.num_late_gaps += 1
            charge(tale.tbt_late_s, open_s, at_s - last_s - slo.tbt_s)
        add(tale.spent_s, open_s)
        tale.last_token_at_s = at_s

    def _name_wait(self, tale: Tale, open_s: Split, at_s: float) -> None:
        """Tell apart the seconds before the first start in which KV was short."""
        started_s = at_s if tale.first_start_at_s is None else tale.first_start_at_s
        waited_s = open_s.get("queueing", 0.0)
        short_s = self._short_of_kv_s(tale.arrived_at_s, started_s, tale)
        open_s["kv_wait"] = min(short_s, waited_s)
        open_s["queueing"] = waited_s - open_s["kv_wait"]

    def _short_of_kv_s(self, low_s: float, high_s: float, tale: Tale) -> float:
        """Return the seconds of steps between two instants with less KV free than the prompt."""
        begins_s, ends_s, free_tokens = map(np.frombuffer, self._free)
        inside_s = np.minimum(ends_s, high_s) - np.maximum(begins_s, low_s)
        return float(inside_s[(inside_s > 0) & (free_tokens < tale.num_prompt_tokens)].sum())

    def _close(self, tale: Tale, until_s: float, *, brought_token: bool = False) -> None:
        """Charge the seconds of the current stage up to an instant, a token's or not."""
        span_s = max(until_s - tale.since_s, 0.0)
        if tale.stage is Stage.QUEUED:
            add(tale.open_s, {"queueing": span_s})
        elif tale.stage is Stage.PREFILL:
            error_s = min(self._beyond_s - tale.beyond_at_start_s, span_s)
            add(tale.open_s, {"prefill": span_s - error_s, "model_error": error_s})
        elif tale.stage is Stage.PREEMPTED:
            add(tale.open_s, {tale.lost_to: span_s})
        else:
            self._close_lag(tale, until_s, span_s, brought_token)
        tale.since_s = max(until_s, tale.since_s)

    def _close_lag(self, tale: Tale, until_s: float, span_s: float, brought_token: bool) -> None:
        """Charge a pause of a decode: the steps without it, and the one that brought a token."""
        run_s = self._run_s - tale.run_at_lag_s
        if self._in_flight:  # It ends after the instant, and so brought nothing.
            begins_s = max(self._in_flight[0][0], self._last_done_s)
            run_s += max(until_s - begins_s, 0.0)
        own_s, error_s = (self.last_step_s, self.last_beyond_s) if brought_token else (0.0, 0.0)
        lagged = {"skipped": run_s - own_s, "long_step": own_s - error_s, "model_error": error_s}
        add(tale.open_s, {**lagged, "other": max(span_s - run_s, 0.0)})
        tale.run_at_lag_s = self._run_s

    # -- in step and out of it --------------------------------------------------------------

    def _fall_in(self, tale: Tale, at_s: float) -> None:
        key = (tale.slo.class_name, tale.slo.tbt_s)
        group = self._groups.get(key)
        if group is None:
            tbt_s = math.inf if tale.slo.tbt_s is None else tale.slo.tbt_s
            group = self._groups[key] = InStep(tale.tally, tbt_s)
        group.count += 1
        tale.group = group
        tale.mark = Mark(at_s, self._run_s, self._beyond_s, group.num_late, group.late_s)
        self._in_step[tale.request_id] = tale

    def _fall_out(self, tale: Tale) -> None:
        """Settle what a decode shared with the others since it fell in; harmless when it is out."""
        mark, group = tale.mark, tale.group
        if mark is None or group is None:
            return
        tale.mark = tale.group = None
        del self._in_step[tale.request_id]
        run_s, beyond_s = self._run_s - mark.run_s, self._beyond_s - mark.beyond_s
        between_s = max(self._last_done_s - mark.at_s - run_s, 0.0)
        shares = {"long_step": run_s - beyond_s, "model_error": beyond_s, "other": between_s}
        add(tale.spent_s, shares)
        tale.num_late_gaps += group.num_late - mark.num_late
        own_s, error_s, between_s = (
            now - then for now, then in zip(group.late_s, mark.late_s, strict=True)
        )
        shares = {"long_step": own_s, "model_error": error_s, "other": between_s}
        add(tale.tbt_late_s, shares)
        tale.last_token_at_s = tale.since_s = self._last_done_s
        tale.run_at_lag_s = self._run_s
        group.count -= 1
        if not group.count:
            del self._groups[(tale.slo.class_name, tale.slo.tbt_s)]
