"""A second policy in the shadow of the running one: what would it make of the same traffic?

A process of its own beside the server, ``python -m headway.study.shadow``, started by ``headway
serve --shadow``. Over and over it takes the last minutes of the recording, fits step times to the
recorded steps, simulates the running policy and the shadow on that machine under that traffic,
and tells the share of promises each of the two kept. Both begin empty and untaught, so the two
figures compare with each other; live attainment is another figure.

It takes at most :data:`MOST_SHARE` of a core: after every piece of work it rests 33 times
as long as that piece took in CPU time, its own start included.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.vllm.channel import Sender
from headway.errors import HeadwayError
from headway.latency.profile import Profile
from headway.latency.truth import Truth
from headway.slo import SloBook
from headway.study.history import History, RecordedRequest
from headway.study.on_sim import engine_of
from headway.study.recorded import workload
from headway.study.recorded_book import document_of
from headway.study.requests import calls_of
from headway.study.spec import Machine
from headway.study.virtual_run import record_of
from headway.workloads.record_files import Row, RunFiles, rows, runs_in

SCHEMA = 1

WINDOW_S = 300.0
"""The traffic compared: what arrived in the last five minutes."""

MOST_REQUESTS = 500
"""Of that traffic, the newest: bounds a look to some six CPU seconds, three minutes with rests."""

FILES_READ = 8
"""Of the files written to in that time, the newest: bounds the reading, at 16 MiB each."""

MOST_STEPS = 1500
"""Newest steps that the step times are fitted to."""

RESTS = 33.0
"""Seconds of rest for a second of CPU time."""

MOST_SHARE = 1.0 / (1.0 + RESTS)
"""Of one core: 2.94 %."""

PIECE_S = 0.05
"""CPU seconds after which it rests; the fit alone is one piece, of up to a second."""

LEAST_REST_S = 15.0
"""Between two looks, also when there is nothing to compare."""

SLICE_S = 0.25
"""Virtual seconds simulated between two thoughts of resting."""

LONGEST_RUN = 10.0
"""A simulation ends at so many windows; who is not served by then was not kept."""

NICENESS = 10
"""Not the lowest priority: that would give it a tenth of its share where all cores are busy."""


class CpuShare:
    """Bounds a process' share of a core, whatever it does between two calls.

    Args:
        cpu_s: Reads the CPU time of this process.
        rest: Sleeps.
    """

    def __init__(
        self,
        cpu_s: Callable[[], float] = time.process_time,
        rest: Callable[[float], None] = time.sleep,
    ) -> None:
        self._cpu_s = cpu_s
        self._rest = rest
        self._paid_s = 0.0  # From the start of the process: its imports are paid for too.

    def __call__(self, piece_s: float = PIECE_S) -> None:
        """Rest when the work since the last rest amounts to *piece_s*."""
        spent_s = self._cpu_s()
        if spent_s - self._paid_s >= piece_s:
            self._rest(RESTS * (spent_s - self._paid_s))
            self._paid_s = spent_s


@dataclass(frozen=True, slots=True)
class Comparison:
    """What one look found: the share of promises that each of the two policies kept."""

    policies: tuple[str, str]
    attainment: tuple[float, float]
    num_promised: int


class Shadow:
    """Compares the running policy of recorded engines with another.

    Args:
        folder: Where the recordings are.
        policy: The shadow, a preset with its own defaults.
        pace: Called often; rests when it must.

    Raises:
        UserError: The policy is not known.
    """

    def __init__(self, folder: Path, policy: str, pace: Callable[[], None]) -> None:
        registry.build(policy)
        self._folder = folder
        self._policy = policy
        self._pace = pace
        self._profiles: dict[str, Profile] = {}

    def runs(self) -> list[RunFiles]:
        """Return the newest run of every engine."""
        return list({run.engine: run for run in runs_in(self._folder)}.values())

    def look(self, run: RunFiles, now_s: float) -> Comparison | None:
        """Compare on the last minutes of a run; ``None`` when they hold nothing to compare.

        Args:
            now_s: This instant on the recording's clock.

        Raises:
            UserError: The recording cannot be read.
        """
        newest = run.written_since(time.time() - WINDOW_S, FILES_READ)
        history = History.of(self._in_pieces(rows(newest)))
        if abs(now_s - history.last_at_s) > WINDOW_S:
            return None  # Nothing lately; or the clock of another life of this machine.
        profile = self._profile(run.engine, history)
        since_s = history.last_at_s - WINDOW_S
        lately = [seen for seen in history.requests.values() if seen.arrived_at_s >= since_s]
        lately = lately[-MOST_REQUESTS:]
        num_promised = sum(seen.slo.is_promise for seen in lately)
        running = history.start.get("policy")
        if profile is None or not num_promised or running not in registry.names():
            return None
        told = {name: history.start[name] for name in ("overload", "options")}
        machine = history.machine("as-recorded")
        kept = (
            self.attainment(lately, machine, profile, policy=running, **told),
            self.attainment(
                lately, machine, profile, policy=self._policy, overload=told["overload"]
            ),
        )
        return Comparison((running, self._policy), kept, num_promised)

    def _in_pieces(self, lines: Iterable[Row]) -> Iterator[Row]:
        for row in lines:
            yield row
            self._pace()

    def _profile(self, engine: str, history: History) -> Profile | None:
        """Return step times of the machine as it is now, else as it last was."""
        listener = history.steps.listener
        del listener.shapes[:-MOST_STEPS], listener.seconds[:-MOST_STEPS]
        if history.tells_speed:
            self._profiles[engine] = history.profile()
            self._pace()
        return self._profiles.get(engine)

    def attainment(
        self, seen: Sequence[RecordedRequest], machine: Machine, profile: Profile, **policy: Any
    ) -> float:
        """Return the share of promises kept when *seen* is served again.

        Args:
            policy: ``policy``, ``overload`` and ``options`` as the registry takes them.
        """
        requests = workload(seen)
        book = SloBook.parse(document_of(one.slo for one in seen))
        calls, slos = calls_of(requests, book)
        core = registry.build(policy.pop("policy"), **policy)
        run = SimRun(engine_of(machine, profile), Truth(profile), core, book=book)
        for call in calls:
            run.submit(call)
        until_s = 0.0
        while run.num_unfinished and until_s < LONGEST_RUN * WINDOW_S:
            next_s = run.next_event_s
            until_s = max(until_s + SLICE_S, next_s if math.isfinite(next_s) else 0.0)
            run.advance(until_s)
            self._pace()
        records = [record_of(run.outcomes[call.request_id], slos) for call in calls]
        kept = [record.attained for record in records if record.slo.is_promise]
        return sum(kept) / len(kept)


def message(engine: str, found: Comparison | None, cpu_s: float) -> dict[str, Any]:
    """Return what readers of the channel are told; without figures when nothing was found."""
    shares: list[dict[str, Any]] = []
    if found is not None:
        triples = zip(("running", "shadow"), found.policies, found.attainment, strict=True)
        shares = [{"role": r, "policy": p, "attainment": a} for r, p, a in triples]
    return {
        "schema": SCHEMA,
        "kind": "shadow",
        "engine": engine,
        "unix_s": time.time(),
        "attainment": shares,
        "num_promised": found.num_promised if found is not None else 0,
        "cpu_s": cpu_s,
    }


def end_with_input() -> None:
    """Wait for the end of standard input, which the server holds, and end this process at once.

    In a thread of its own: on a busy machine a low priority makes a piece of work long.
    """
    while os.read(0, 1):
        pass
    os._exit(0)


def watch(shadow: Shadow, sender: Sender) -> None:
    """Look, tell, rest; for ever. What goes wrong is said once, and tried again."""
    said = ""
    while True:
        try:
            for run in shadow.runs():
                found = shadow.look(run, time.monotonic())
                sender.find_readers()
                sender.send(message(run.engine, found, time.process_time()))
        except HeadwayError as error:
            if str(error) != said:
                print(f"headway: the shadow sees nothing: {error}", file=sys.stderr)
            said = str(error)
        time.sleep(LEAST_REST_S)


def main() -> None:
    """Compare until standard input ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("policy")
    parser.add_argument("--channel", required=True)
    given = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Whoever stops the server ends our input.
    threading.Thread(target=end_with_input, daemon=True).start()
    os.nice(NICENESS)
    watch(Shadow(given.folder, given.policy, CpuShare()), Sender(given.channel))


if __name__ == "__main__":
    main()
