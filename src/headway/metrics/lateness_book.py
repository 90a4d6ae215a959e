"""The book of lateness: where each request's seconds go, kept while it runs.

The rule is that of :mod:`headway.metrics.causes`. The book hears events and must not spend time
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

from headway.metrics.causes import Split, add, charge
from headway.metrics.in_step import GroupKey, InStep, LongestGaps, Mark, since
from headway.metrics.request_lateness import Lateness, LiveLateness, Stage, judged
from headway.metrics.tally import Tallies
from headway.slo import Slo

STEPS_KEPT = 4096
"""Steps whose free KV is remembered; of a longer wait, what came before counts as queueing."""


_Step = tuple[float, float, Sequence[tuple[LiveLateness, int]]]
"""A step in flight: when it began, what it may take, and who began in it, how often preempted."""


class LatenessBook:
    """Every live request's seconds, by cause."""

    def __init__(self, tallies: Tallies) -> None:
        self.live: dict[str, LiveLateness] = {}
        self.last_step_s = 0.0
        self.last_beyond_s = 0.0
        self._tallies = tallies
        self._in_step: dict[str, LiveLateness] = {}
        self._groups: dict[GroupKey, InStep] = {}
        self._longest = LongestGaps()
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
    ) -> LiveLateness:
        """A request reached the engine."""
        tally = self._tallies.of(slo.class_name)
        live = LiveLateness(request_id, slo, tally, arrived_at_s, num_prompt_tokens, arrived_at_s)
        self.live[request_id] = live
        return live

    def reached(self, request_id: str, at_s: float) -> None:
        """A request has just arrived that reached this server at *at_s*, maybe later."""
        live = self.live[request_id]
        live.elsewhere_s = max(at_s - live.arrived_at_s, 0.0)
        if live.elsewhere_s:
            live.open_s["elsewhere"] = live.elsewhere_s
            live.since_s = at_s

    def preempted(self, request_id: str, at_s: float, *, swapped: bool = False) -> None:
        """A running request lost its place; *swapped* when the host keeps its KV."""
        live = self.live.get(request_id)
        if live is None:
            return
        self._fall_out(live)
        self._close(live, at_s if live.stage is Stage.QUEUED else self._last_done_s)
        if live.stage is Stage.QUEUED:
            live.first_start_at_s = at_s
        live.stage = Stage.PREEMPTED
        live.lost_to = "swap" if swapped else "preemption"
        live.is_running = False
        live.num_preemptions += 1

    def scheduled(self, at_s: float, admitted: Mapping[str, int], planned_s: float) -> None:
        """A step was begun; *planned_s* is what it may take at most, ``inf`` without a bound."""
        if not admitted:
            self._in_flight.append((at_s, planned_s, ()))
            return
        started: list[tuple[LiveLateness, int]] = []
        for request_id in admitted:
            live = self.live.get(request_id)
            if live is not None:
                live.is_running = True
                started.append((live, live.num_preemptions))
        self._in_flight.append((at_s, planned_s, started))

    def done(self, at_s: float, emitted: Mapping[str, int], free_tokens: int) -> None:
        """The oldest step in flight ended; *free_tokens* of KV were free when it was planned."""
        if not self._in_flight:
            return
        begins_s, planned_s, started = self._in_flight.popleft()
        begins_s = max(begins_s, self._last_done_s)
        for live, num_preemptions in started:
            if live.num_preemptions == num_preemptions and live.stage is Stage.QUEUED:
                self._start(live, begins_s)
        joined: list[str] = []
        in_step = self._in_step
        if emitted.keys() != in_step.keys():
            joined = [i for i in emitted if i not in in_step]
            for request_id in [i for i in in_step if i not in emitted]:
                self._fall_out(in_step[request_id])
        self._advance(begins_s, at_s, planned_s, free_tokens)
        for request_id in joined:
            resumed = self.live.get(request_id)
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
    ) -> Lateness:
        """A request left.

        Args:
            ended_well: Its answer came to its natural end. If not, or without any token, its end
                stands in for the token that never came.
            was_refused: The scheduler turned it away: it never waited for a token.

        Raises:
            KeyError: The request is not live here.
        """
        live = self.live.pop(request_id)
        self._fall_out(live)
        num_gaps = max(num_output_tokens - 1, 0)
        has_token = live.first_token_at_s is not None
        if not ((ended_well and has_token) or was_refused):
            num_gaps = num_output_tokens  # The last one ends with the request.
            self._settle(live, at_s)
        return judged(live, num_gaps, ended_well=ended_well)

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
            group.waited(gap_s, took_s, beyond_s)
        if self._in_step:
            self._longest.add(self._num_steps, gap_s)
        else:
            self._longest.clear()
        self._last_done_s = at_s
        index = self._num_steps % STEPS_KEPT
        all_begin_s, all_end_s, all_free = self._free
        all_begin_s[index], all_end_s[index], all_free[index] = begins_s, at_s, free_tokens
        self._num_steps += 1

    def _start(self, live: LiveLateness, at_s: float) -> None:
        self._close(live, at_s)
        live.stage = Stage.PREFILL
        live.first_start_at_s = at_s
        live.beyond_at_start_s = self._beyond_s

    def _token(self, live: LiveLateness, at_s: float) -> None:
        """A request that was not in step got a token: its first, or after a pause."""
        if live.last_token_at_s is None:
            live.first_token_at_s = at_s
            live.tally.ttft.add(at_s - live.arrived_at_s)
        else:
            live.tally.gap.add(at_s - live.last_token_at_s)
        self._settle(live, at_s, brought_token=True)
        if live.is_running:
            live.stage = Stage.DECODE
            self._fall_in(live, at_s)

    def _settle(self, live: LiveLateness, at_s: float, *, brought_token: bool = False) -> None:
        """The span under way ends, with a token or with the request: charge what of it is late."""
        self._close(live, at_s, brought_token=brought_token)
        open_s, live.open_s = live.open_s, {}
        slo, last_s = live.slo, live.last_token_at_s
        if last_s is None:
            late_s = -math.inf if slo.ttft_s is None else at_s - live.arrived_at_s - slo.ttft_s
            if late_s > 0 or slo.jct_s is not None:
                self._name_wait(live, open_s, at_s)
            if late_s > 0:
                charge(live.ttft_late_s, open_s, late_s)
        else:
            gap_s = at_s - last_s
            live.longest_gap_s = max(live.longest_gap_s, gap_s)
            if slo.tbt_s is not None and gap_s > slo.tbt_s:
                live.num_late_gaps += 1
                charge(live.tbt_late_s, open_s, gap_s - slo.tbt_s)
            if gap_s > slo.longest_pause_s:
                charge(live.pause_late_s, open_s, gap_s - slo.longest_pause_s)
        add(live.spent_s, open_s)
        if last_s is None and slo.tpot_s is not None:
            live.first_spent_s = dict(live.spent_s)
        live.last_token_at_s = at_s

    def _name_wait(self, live: LiveLateness, open_s: Split, at_s: float) -> None:
        """Tell apart the seconds before the first start in which KV was short."""
        started_s = at_s if live.first_start_at_s is None else live.first_start_at_s
        waited_s = open_s.get("queueing", 0.0)
        short_s = self._short_of_kv_s(live.arrived_at_s + live.elsewhere_s, started_s, live)
        open_s["kv_wait"] = min(short_s, waited_s)
        open_s["queueing"] = waited_s - open_s["kv_wait"]

    def _short_of_kv_s(self, low_s: float, high_s: float, live: LiveLateness) -> float:
        """Return the seconds of steps between two instants with less KV free than the prompt."""
        begins_s, ends_s, free_tokens = map(np.frombuffer, self._free)
        inside_s = np.minimum(ends_s, high_s) - np.maximum(begins_s, low_s)
        return float(inside_s[(inside_s > 0) & (free_tokens < live.num_prompt_tokens)].sum())

    def _close(self, live: LiveLateness, until_s: float, *, brought_token: bool = False) -> None:
        """Charge the seconds of the current stage up to an instant, a token's or not."""
        span_s = max(until_s - live.since_s, 0.0)
        if live.stage is Stage.QUEUED:
            add(live.open_s, {"queueing": span_s})
        elif live.stage is Stage.PREFILL:
            error_s = min(self._beyond_s - live.beyond_at_start_s, span_s)
            add(live.open_s, {"prefill": span_s - error_s, "model_error": error_s})
        elif live.stage is Stage.PREEMPTED:
            add(live.open_s, {live.lost_to: span_s})
        else:
            self._lag(live, until_s, span_s, brought_token)
        live.since_s = max(until_s, live.since_s)

    def _lag(self, live: LiveLateness, until_s: float, span_s: float, brought_token: bool) -> None:
        """Charge a pause of a decode: the steps without it, and the one that brought a token."""
        run_s = self._run_s - live.run_at_lag_s
        if self._in_flight:  # It ends after the instant, and so brought nothing.
            begins_s = max(self._in_flight[0][0], self._last_done_s)
            run_s += max(until_s - begins_s, 0.0)
        own_s, error_s = (self.last_step_s, self.last_beyond_s) if brought_token else (0.0, 0.0)
        lagged = {"skipped": run_s - own_s, "long_step": own_s - error_s, "model_error": error_s}
        add(live.open_s, {**lagged, "other": max(span_s - run_s, 0.0)})
        live.run_at_lag_s = self._run_s

    # -- in step and out of it --------------------------------------------------------------

    def _fall_in(self, live: LiveLateness, at_s: float) -> None:
        slo = live.slo
        key = (slo.class_name, slo.tbt_s, slo.longest_pause_s)
        group = self._groups.get(key)
        if group is None:
            tbt_s = math.inf if slo.tbt_s is None else slo.tbt_s
            group = self._groups[key] = InStep(key, live.tally, tbt_s, slo.longest_pause_s)
        group.count += 1
        if live.payer is not None:
            live.payer.counted.num_in_step += 1
        live.group = group
        live.mark = Mark(
            at_s,
            self._num_steps,
            self._run_s,
            self._beyond_s,
            group.num_late,
            group.late_s,
            group.pause_late_s,
        )
        self._in_step[live.request_id] = live

    def _fall_out(self, live: LiveLateness) -> None:
        """Settle what a decode shared with the others since it fell in; harmless when it is out."""
        mark, group = live.mark, live.group
        if mark is None or group is None:
            return
        live.mark = live.group = None
        del self._in_step[live.request_id]
        run_s, beyond_s = self._run_s - mark.run_s, self._beyond_s - mark.beyond_s
        between_s = max(self._last_done_s - mark.at_s - run_s, 0.0)
        shares = {"long_step": run_s - beyond_s, "model_error": beyond_s, "other": between_s}
        add(live.spent_s, shares)
        live.num_late_gaps += group.num_late - mark.num_late
        live.longest_gap_s = max(live.longest_gap_s, self._longest.since(mark.num_steps))
        add(live.tbt_late_s, since(group.late_s, mark.late_s))
        add(live.pause_late_s, since(group.pause_late_s, mark.pause_late_s))
        live.last_token_at_s = live.since_s = self._last_done_s
        live.run_at_lag_s = self._run_s
        if live.payer is not None:
            live.payer.counted.num_in_step -= 1
        group.count -= 1
        if not group.count:
            del self._groups[group.key]
