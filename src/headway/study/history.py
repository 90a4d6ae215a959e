"""What a recording says happened: requests as their clients saw them, the machine, its steps."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headway import registry
from headway.errors import UserError
from headway.latency.calibration import HOLD_OUT_EVERY, LEAST_STEPS, Listener, fit_steps
from headway.latency.profile import Profile
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.request import NATURAL_ENDS
from headway.slo import Slo
from headway.study.spec import Machine
from headway.units import GIB
from headway.workloads.record_files import Row, event_in


@dataclass(slots=True)
class RecordedRequest:
    """One request of a recording.

    Attributes:
        max_output_tokens: Its client's bound; ``None`` where it is not known.
        num_found_tokens: Of its prompt, found in the prefix cache when it first began.
        ended_at_s: ``None`` while it was still served when the recording ends.
        reason: As in :class:`~headway.policy.events.Finished`; ``refused`` for the planned ones.
        is_cut: Lines were lost during its life: its tokens are not all known.
    """

    id: str
    slo: Slo
    arrived_at_s: float
    num_prompt_tokens: int
    max_output_tokens: int | None = None
    emitted_at_s: list[float] = field(default_factory=list)
    num_found_tokens: int = 0
    num_begun: int = 0
    ended_at_s: float | None = None
    reason: str | None = None
    is_cut: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its answer ran to its end and every token of it is known."""
        return self.reason in NATURAL_ENDS and not self.is_cut

    def record(self) -> RequestRecord:
        """Return the request as its client saw it."""
        outcome = "finished" if self.reason in NATURAL_ENDS else self.reason
        return RequestRecord(
            id=self.id,
            slo=self.slo,
            arrived_at_s=self.arrived_at_s,
            emitted_at_s=tuple(self.emitted_at_s),
            outcome=outcome if outcome in ("finished", "refused", "aborted") else "failed",  # type: ignore[arg-type]
            num_prompt_tokens=self.num_prompt_tokens,
            ended_at_s=self.ended_at_s,
        )


class StepMeter:
    """Shapes and seconds of the steps of a recording, those left out that cannot be known.

    A step says nothing of the machine when it served a request whose arrival is not recorded:
    where the oldest files were removed, and after a gap.
    """

    def __init__(self) -> None:
        self.listener = Listener()
        self.restart()

    def restart(self) -> None:
        """Lines were lost: forget who is here."""
        self._core = registry.build("fcfs", latency=self.listener)
        self._known: set[str] = set()
        self._in_flight: deque[bool] = deque()

    def take(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Arrived):
            self._known.add(event.request_id)
        elif isinstance(event, StepScheduled) and event.num_scheduled_tokens:
            self._in_flight.append(event.num_scheduled_tokens.keys() <= self._known)
        elif isinstance(event, Finished):
            self._known.discard(event.request_id)
        num_steps = len(self.listener.shapes)
        self._core.observe(event)
        if isinstance(event, StepDone) and not (self._in_flight and self._in_flight.popleft()):
            del self.listener.shapes[num_steps:], self.listener.seconds[num_steps:]


class History:
    """Everything a replay needs of a recording.

    Attributes:
        requests: By name, in order of arrival in the core.
        start: What the recording says of itself: policy, options, overload; empty when nothing.
        num_gaps: Places where lines are missing.
        last_at_s: Instant of the newest event.
    """

    def __init__(self) -> None:
        self.requests: dict[str, RecordedRequest] = {}
        self.start: Mapping[str, Any] = {}
        self.num_gaps = 0
        self.last_at_s = -math.inf
        self.num_preemptions = {"recompute": 0, "swap": 0}
        self.steps = StepMeter()
        self._live: dict[str, RecordedRequest] = {}
        self._view: Mapping[str, Any] = {}
        self._profile: Profile | None = None
        self._most_in_flight = 0
        self._host_blocks = 0
        self._swapped: frozenset[str] = frozenset()

    @classmethod
    def of(cls, rows: Iterable[Row]) -> History:
        """Return the history that the lines of a recording tell.

        Raises:
            UserError: A line is none of a recording.
        """
        history = cls()
        for where, row in rows:
            try:
                history.take(where, row)
            except (KeyError, TypeError, AttributeError):
                raise UserError(f"{where}: not a line of a recording.") from None
        return history

    def take(self, where: str, row: dict[str, Any]) -> None:
        """Take one line in; *where* names it in an error."""
        event = event_in(where, row)
        if event is not None:
            self.last_at_s = event.at_s
            if "swapped" in row:  # Older recordings tell only what was planned.
                self._swapped = frozenset(row["swapped"])
            self.steps.take(event)
            self._happened(event)
        elif "view" in row:
            self._view = row["view"]
            self._most_in_flight = max(self._most_in_flight, row["view"]["num_steps_in_flight"])
            self._host_blocks = max(self._host_blocks, row["view"].get("swap_free_blocks", 0))
        elif "plan" in row:
            self._planned(row["plan"])
        elif "gap" in row:
            self.num_gaps += 1
            self.steps.restart()
            for seen in self._live.values():
                seen.is_cut = True
        else:
            self.start = row["start"]

    def _happened(self, event: Event) -> None:
        if isinstance(event, Arrived):
            seen = RecordedRequest(
                event.request_id, event.slo, event.arrived_at_s, event.num_prompt_tokens,
                event.max_output_tokens,
            )  # fmt: skip
            self.requests[event.request_id] = self._live[event.request_id] = seen
        elif isinstance(event, StepScheduled):
            for name in event.preempted:
                self.num_preemptions["swap" if name in self._swapped else "recompute"] += 1
            for name, num_tokens in event.admitted.items():
                if name in self._live:
                    self._begun(self._live[name], num_tokens)
        elif isinstance(event, StepDone):
            for name, count in event.num_new_tokens.items():
                if name in self._live:
                    self._live[name].emitted_at_s.extend([event.at_s] * count)
        elif isinstance(event, Finished) and event.request_id in self._live:
            seen = self._live.pop(event.request_id)
            seen.ended_at_s = event.at_s
            seen.reason = seen.reason or event.reason

    def _begun(self, seen: RecordedRequest, num_tokens: int) -> None:
        if not seen.num_begun:
            seen.num_found_tokens = num_tokens
        seen.num_begun += 1

    def _planned(self, plan: Mapping[str, Any]) -> None:
        for refuse in plan["refuse"]:
            if refuse["request_id"] in self._live:
                self._live[refuse["request_id"]].reason = "refused"
        if plan["preempt"]:
            swapped = (p["request_id"] for p in plan["preempt"] if p["how"] == "swap")
            self._swapped = frozenset(swapped)

    # -- answers ----------------------------------------------------------------------------

    def as_it_happened(self) -> dict[str, Any]:
        """Return the summary of what was recorded, as of any other run.

        Requests without a known end are not in it.
        """
        ended = [s.record() for s in self.requests.values() if s.reason and not s.is_cut]
        facts = RunFacts("as it happened", "vllm", preemptions=dict(self.num_preemptions))
        return {**summarise(ended, facts), "step_time_band": 0.0}

    @property
    def num_unended(self) -> int:
        """Requests of which it is not known how they ended, or what they got."""
        return sum(s.reason is None or s.is_cut for s in self.requests.values())

    @property
    def kv_tokens(self) -> int:
        """KV cache of the recorded engine; 0 when no plan was recorded."""
        return int(self._view.get("num_total_blocks", 0)) * self.block_size

    @property
    def block_size(self) -> int:
        """Tokens of a block of it."""
        return int(self._view.get("block_size_tokens", 16))

    def machine(self, gpu: str) -> Machine:
        """Return the recorded engine, its steps as slow as *gpu* says."""
        copy_bytes_per_s = self._view.get("copy_bytes_per_s") or Machine(gpu).copy_gib_per_s * GIB
        return Machine(
            gpu,
            kv_tokens=self.kv_tokens or None,
            block_size=self.block_size,
            max_num_seqs=self._view.get("max_num_running"),
            asynchronous=self._most_in_flight > 0,
            host_tokens=self._host_blocks * self.block_size,
            copy_gib_per_s=copy_bytes_per_s / GIB,
        )

    @property
    def tells_speed(self) -> bool:
        """Whether enough steps were measured to fit a profile to."""
        usable = sum(seconds > 0 for seconds in self.steps.listener.seconds)
        return usable >= LEAST_STEPS and self.kv_tokens > 0

    def profile(self) -> Profile:
        """Return the step times of the recorded machine.

        Raises:
            UserError: Too few steps can be used.
        """
        if self._profile is not None:
            return self._profile
        listener = self.steps.listener
        cost, error = fit_steps(listener.shapes, listener.seconds)
        self._profile = Profile(
            name="as-recorded",
            gpu="as-recorded",
            model="as-recorded",
            parallelism="as-recorded",
            cost=cost,
            kv_bytes_per_token=int(self._view.get("kv_bytes_per_token", 0)),
            kv_capacity_tokens=self.kv_tokens,
            max_num_batched_tokens=int(self._view.get("max_step_tokens", 2048)),
            max_num_seqs=int(self._view.get("max_num_running", 256)),
            source=f"{len(listener.shapes)} steps of a live server, scheduling included",
            assumptions=(f"Every {HOLD_OUT_EVERY}th step judged the fit.",),
            error=error,
        )
        return self._profile
