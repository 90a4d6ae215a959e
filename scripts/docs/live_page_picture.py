"""Take the picture of the live page that ``docs/how-to/read-the-page.md`` shows.

    python scripts/docs/live_page_picture.py [--browser chromium]

The page is the one that servers show. Its data come from a run under a virtual clock: mixed traffic
in bursts, with little KV cache. Needs Chromium (Debian: ``chromium``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import threading
import time
from collections.abc import Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from headway import registry
from headway.engines.counted import Counted
from headway.engines.journal import Journal
from headway.engines.sim.run import SimRun
from headway.engines.vllm.observe import PAGE_FILES, STATE
from headway.latency import profile as profiles
from headway.metrics.board import Board
from headway.policy.scheduler import Scheduler
from headway.request import Request
from headway.study.on_sim import engine_of
from headway.study.requests import calls_of
from headway.study.spec import Machine
from headway.study.virtual_run import truth_of
from headway.workloads import named
from headway.workloads.arrivals import Arrivals

PICTURE = Path(__file__).resolve().parents[2] / "docs" / "assets" / "live-page.png"
MACHINE = Machine(gpu="llama-3.1-8b@l40s", kv_tokens=40_000, noise=0.05)
RATE_RPS, ARRIVALS, UNTIL_S, SEED = 3.5, "gamma:3", 310.0, 1
SIZE_PX = (1100, 2030)
LOADED_MS = 3000


class Shown(Counted):
    """Tells a board what a core hears and decides, at the instants of the virtual clock."""

    def __init__(self, core: Scheduler, board: Board, unix_at_zero_s: float) -> None:
        super().__init__(core, unix_at_zero_s)
        self._board = board

    def ended(self, request: Request, broken: dict[str, Any] | None) -> None:
        """Tell of a broken promise."""
        if broken is not None:
            unix_s = broken["ended_at_s"] + self.observed.unix_at_zero_s
            self._take({**broken, "unix_s": unix_s})

    def tell(self, at_s: float, *, is_idle: bool) -> None:
        """Tell the counts."""
        core = self._core
        times = core.known.targets.times
        counts = self.observed.snapshot(core.live, at_s, times, core.load(at_s))
        counts["unix_s"] = at_s + self.observed.unix_at_zero_s
        counts["length_coverage_target"] = core.known.lengths.coverage_target
        counts["counts"]["dropped"] = {}
        self._take(counts)

    def _take(self, message: dict[str, Any]) -> None:
        assert self._board.take(json.loads(json.dumps({**message, "engine": "0"})))


class Page(BaseHTTPRequestHandler):
    """Answers as a server with ``--page``, at one instant: the end of the run."""

    def __init__(self, board: Board, now_s: float, *args: Any) -> None:
        self._board, self._now_s = board, now_s
        super().__init__(*args)

    def do_GET(self) -> None:
        """Answer a request for the page, one of its files, or the state."""
        path, _, query = self.path.partition("?")
        name, kind = PAGE_FILES.get(path, ("", "application/json"))
        if not name and path != STATE:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("content-type", kind)
        self.end_headers()
        if name:
            self.wfile.write((files("headway.web") / "live" / name).read_bytes())
        else:
            after = int(query.removeprefix("after=") or 0)
            self.wfile.write(json.dumps(self._board.state(self._now_s, after)).encode())

    def log_message(self, *_: Any) -> None:
        """Write no log."""


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the page for as long as the browser takes its picture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--browser", default="chromium", help="Chromium's command.")
    parser.add_argument("--out", type=Path, default=PICTURE, help="The picture, a PNG file.")
    given = parser.parse_args(argv)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Page, *board_of_run()))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    width, height = SIZE_PX
    subprocess.run(
        [
            given.browser,
            *("--headless=new", "--no-sandbox", "--no-zygote", "--disable-gpu"),
            *(
                "--hide-scrollbars",
                f"--window-size={width},{height}",
                f"--virtual-time-budget={LOADED_MS}",
            ),
            f"--screenshot={given.out.resolve()}",
            f"http://127.0.0.1:{server.server_port}/headway",
        ],
        check=True,
    )
    server.shutdown()


def board_of_run() -> tuple[Board, float]:
    """Serve the traffic under the virtual clock; return the board, and the instant of the end."""
    profile = profiles.load(MACHINE.gpu)
    bursts = Arrivals.parse(ARRIVALS)
    requests = named.make("mixed", round(RATE_RPS * UNTIL_S), RATE_RPS, SEED, bursts)
    calls, _ = calls_of(requests, named.BOOK)
    core = registry.build("headway")
    board, now_s = Board(), time.time()
    journal = Journal(core, Shown(core, board, now_s - UNTIL_S))
    truth = truth_of(profile, MACHINE, SEED)
    run = SimRun(engine_of(MACHINE, profile), truth, journal, book=named.BOOK)
    for call in calls:
        run.submit(call)
    run.advance(UNTIL_S)
    return board, now_s


if __name__ == "__main__":
    main()
