"""The load generator against a small server that does what we say, and its command line."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from click.testing import CliRunner

from headway.bench import calls as calls_module
from headway.bench import contenders
from headway.bench.client import Call
from headway.bench.compare import rows_of, verdict
from headway.bench.load import Tally, run_load
from headway.bench.probe import ask_server, parse_metrics, preemptions_between
from headway.bench.server import LiveServer, ServerDied
from headway.bench.session import Plan, measure
from headway.bench.show import tally_text
from headway.bench.words import message_of
from headway.cli.bench import bench, priorities_of
from headway.errors import HeadwayError, UserError
from headway.slo import Slo, SloBook
from headway.workloads.realtext import SLO_FILE, demo_workload
from headway.workloads.schema import WorkloadRequest

SLO = Slo(ttft_s=5.0, tbt_s=5.0, class_name="chat")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def call(name: str, say: str = "tokens", arrived_at_s: float = 0.0) -> Call:
    return Call(name, arrived_at_s, SLO, {"messages": [{"content": say}]}, 7)


class FakeServer:
    """Answers as the prompt asks: ``tokens``, ``text``, ``refuse``, ``break``, ``hang``, …"""

    def __init__(self, owned_by: str = "vllm") -> None:
        self.bodies: list[dict[str, Any]] = []
        self.owned_by = owned_by
        self.num_preemptions = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        server = TestServer(app)
        await server.start_server()
        try:
            yield str(server.make_url("")).rstrip("/")
        finally:
            await server.close()

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny", "owned_by": self.owned_by}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        text = f'# HELP x\nvllm:num_preemptions_total{{engine="0"}} {self.num_preemptions}.0\n'
        return web.Response(text=text)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        say = body["messages"][0]["content"]
        if say == "refuse":
            return web.json_response({"error": {"message": "too busy"}}, status=429)
        if say == "invalid":
            return web.json_response({"error": {"message": "bad value"}}, status=400)
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in CHUNKS.get(say, CHUNKS["tokens"]):
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        if say == "hang":
            await asyncio.Event().wait()
        if say == "break":
            assert request.transport is not None
            request.transport.close()
            return response
        self.num_preemptions += 1
        await response.write(b"data: [DONE]\n\n")
        return response


def chunk(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish, **more}]}


CHUNKS: dict[str, list[dict[str, Any]]] = {
    "tokens": [
        {**chunk(), "prompt_token_ids": [1, 2, 3]},
        chunk("a", token_ids=[4]),
        chunk("bc", token_ids=[5, 6]),
        chunk("", "stop", token_ids=[2]),
        {"choices": [], "usage": {}},
    ],
    "text": [chunk(), chunk("a"), chunk("b"), chunk("", "stop")],
    "hang": [chunk("a", token_ids=[4])],
    "break": [chunk("a", token_ids=[4])],
    "abort": [chunk("a", token_ids=[4]), chunk("", "abort", token_ids=[])],
    "error": [{"error": {"message": "engine died", "code": 500}}],
}


async def load_of(*sayings: str, timeout_s: float = 5.0, **options: Any) -> list[Any]:
    planned = [call(f"r{i}", say) for i, say in enumerate(sayings)]
    async with FakeServer().running() as url:
        return (await run_load(url, planned, timeout_s=timeout_s, **options)).records


def test_tokens_are_counted_by_their_ids() -> None:
    """Tokens of one chunk share its time; the prompt's length is the server's own count."""
    (record,) = asyncio.run(load_of("tokens"))
    assert record.outcome == "finished"
    assert record.num_output_tokens == 4
    assert record.emitted_at_s[1] == record.emitted_at_s[2]
    assert record.num_prompt_tokens == 3


def test_without_ids_each_chunk_with_text_is_a_token() -> None:
    """Role and finish chunks carry no text and are not tokens."""
    (record,) = asyncio.run(load_of("text"))
    assert (record.outcome, record.num_output_tokens) == ("finished", 2)
    assert record.num_prompt_tokens == 7


@pytest.mark.parametrize(
    ("say", "outcome", "detail"),
    [
        ("refuse", "refused", "HTTP 429: too busy"),
        ("invalid", "failed", "HTTP 400: bad value"),
        ("break", "failed", "connection"),
        ("abort", "aborted", "ended by the server"),
        ("error", "failed", "engine died"),
    ],
)
def test_what_is_not_served_is_recorded_with_its_reason(
    say: str, outcome: str, detail: str
) -> None:
    """No answer ever raises; each has an outcome and one sentence."""
    (record,) = asyncio.run(load_of(say))
    assert record.outcome == outcome
    assert detail in record.detail
    assert not record.attained


def test_a_request_without_an_end_times_out_and_keeps_its_tokens() -> None:
    """The client gives up after its timeout, alone; others are not touched."""
    hung, fine = asyncio.run(load_of("hang", "tokens", timeout_s=0.2))
    assert (hung.outcome, hung.num_output_tokens) == ("timed_out", 1)
    assert fine.outcome == "finished"


def test_a_silent_server_does_not_hold_back_later_requests() -> None:
    """Open loop: requests leave at their time while the first one still hangs."""
    planned = [call("hung", "hang")] + [call(f"r{i}", arrived_at_s=0.01 * i) for i in range(1, 20)]

    async def run() -> Any:
        async with FakeServer().running() as url:
            return await run_load(url, planned, timeout_s=0.6)

    result = asyncio.run(run())
    assert [r.id for r in result.records] == [c.id for c in planned]
    assert sum(r.finished for r in result.records) == 19
    assert all(r.sent_at_s >= r.arrived_at_s for r in result.records)
    assert result.lag.send_s["p50"] < 0.1
    assert result.lag.loop_s["max"] is not None


def test_progress_tells_the_truth_at_the_end() -> None:
    """The last tally counts everything offered, kept, refused and failed."""
    seen: list[str] = []
    asyncio.run(
        load_of("tokens", "refuse", "error", on_progress=lambda t: seen.append(tally_text(t)))
    )
    assert seen[-1] == "offered 3/3 · finished 1 · kept 1 · refused 1 · failed 1"


def test_a_stopped_run_keeps_what_it_has() -> None:
    """Cancelling ends the run early: in flight is aborted, not yet sent is not offered."""
    planned = [call("a", "hang"), call("b", arrived_at_s=1000.0)]

    async def run() -> Any:
        async with FakeServer().running() as url:
            begun = asyncio.Event()

            def progress(tally: Tally) -> None:
                if tally.num_offered:
                    begun.set()

            task = asyncio.create_task(
                run_load(url, planned, timeout_s=60, on_progress=progress, progress_every_s=0.01)
            )
            await begun.wait()
            task.cancel()
            return await task

    result = asyncio.run(run())
    assert result.was_stopped
    assert [(r.id, r.outcome) for r in result.records] == [("a", "aborted")]


def measured_with(server: FakeServer, plan: Plan) -> Any:
    async def run() -> Any:
        async with server.running() as url:
            return await measure(url, plan)

    return asyncio.run(run())


def demo_plan(**changes: Any) -> Plan:
    workload = [WorkloadRequest("r0", 0.0, 3, 4, slo_class="chat", prompt="hello")]
    return Plan(workload, SloBook.load(SLO_FILE), **changes)


def test_a_measured_run_counts_preemptions_after_the_warm_up() -> None:
    """Warm-up requests are sent first and appear in no figure."""
    server = FakeServer()
    measured = measured_with(server, demo_plan(policy="slack", seed=3))
    assert len(server.bodies) == calls_module.WARM_UP_REQUESTS + 1
    assert measured.run["num_requests"] == 1
    assert measured.run["preemptions"] == {"recompute": 1, "swap": None}
    assert measured.run["policy"] == "slack"
    assert measured.run["per_class"]["chat"]["attainment"] == 1.0


def test_bodies_carry_promises_priorities_and_token_ids() -> None:
    """vLLM gets milliseconds in vllm_xargs, a priority by class, and greedy decoding."""
    server = FakeServer()
    measured_with(server, demo_plan(warm_up=False, priority_by_class={"chat": 2}))
    (body,) = server.bodies
    assert body["vllm_xargs"] == {"slo_ttft_ms": 1000.0, "slo_tbt_ms": 200.0}
    assert (body["priority"], body["temperature"], body["max_tokens"]) == (2, 0, 4)
    assert body["return_token_ids"] is True
    assert "ignore_eos" not in body


def test_promises_can_go_by_class_name_or_not_at_all() -> None:
    """--slo-as class sends the name; --no-send-slo sends nothing."""
    for send_slo, xargs in (("class", {"slo_class": "chat"}), ("no", None)):
        server = FakeServer()
        measured_with(server, demo_plan(warm_up=False, send_slo=send_slo))
        assert server.bodies[0].get("vllm_xargs") == xargs


def test_other_servers_get_plain_openai_bodies() -> None:
    """A server that is not vLLM is sent no field it might refuse."""
    server = FakeServer(owned_by="someone")
    measured_with(server, demo_plan(warm_up=False, priority_by_class={"chat": 2}))
    plain = {"model", "messages", "max_tokens", "temperature", "stream"}
    assert set(server.bodies[0]) == {*plain, "stream_options"}
    measured_with(server, demo_plan(warm_up=False, asks_usage=False))
    assert set(server.bodies[1]) == plain


def test_a_trace_without_text_gets_a_prompt_and_its_exact_length() -> None:
    """Lengths come from the trace, so the answer must not end early."""
    (made,) = calls_module.calls_of(
        [WorkloadRequest("r0", 0.0, 200, 33)],
        SloBook.builtin(),
        calls_module.CallOptions("tiny"),
    )
    assert made.body["ignore_eos"] is True
    assert made.body["max_tokens"] == 33
    assert len(made.body["messages"][0]["content"]) > 400


def test_a_priority_for_a_class_that_is_not_there_is_refused() -> None:
    """A typo in --priority-by-class must not be silence."""
    with pytest.raises(UserError, match="'chatt'"):
        calls_module.calls_of(
            demo_workload(10, 0),
            SloBook.load(SLO_FILE),
            calls_module.CallOptions("tiny", priority_by_class={"chatt": 0}),
        )


def test_a_server_whose_warm_up_fails_is_not_measured() -> None:
    """The sentence gives the server's own reason."""

    class Refusing(FakeServer):
        async def _chat(self, request: web.Request) -> web.StreamResponse:
            return web.json_response({"error": {"message": "no slo_class chat"}}, status=400)

    with pytest.raises(HeadwayError, match="no slo_class chat"):
        measured_with(Refusing(), demo_plan())


def test_nobody_there_is_one_sentence() -> None:
    """A wrong URL is a user's mistake, not a traceback."""
    with pytest.raises(UserError, match="is it running"):
        asyncio.run(ask_server("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--url", "localhost"], "--url must start"),
        (["--rate", "0"], "--rate"),
        (["--rate", "nan"], "--rate"),
        (["--requests", "0"], "--requests"),
        (["--requests", "1.5"], "--requests"),
        (["--arrivals", "gamma"], "--arrivals"),
        (["--arrivals", "trace"], "no recorded times"),
        (["--timeout-s", "-1"], "--timeout-s"),
        (["--priority-by-class", "chat"], "--priority-by-class"),
        (["--workload", "nowhere.jsonl"], "Cannot read nowhere.jsonl"),
        (["--slo", "nowhere.toml"], "Cannot read the SLO file"),
        (["--out", "no/such/folder/x.jsonl"], "does not exist"),
    ],
)
def test_bad_flags_are_sentences(args: list[str], sentence: str) -> None:
    """Each wrong flag raises the one sentence that the command line prints."""
    result = CliRunner().invoke(bench, args)
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)


def test_the_command_writes_its_files(tmp_path: Path) -> None:
    """headway bench writes one line a request and one summary, and prints a table."""
    workload = tmp_path / "w.jsonl"
    rows = [
        {"arrived_at_s": i / 100, "num_prompt_tokens": 5, "num_output_tokens": 3, "prompt": "x"}
        for i in range(5)
    ]
    workload.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out, summary = tmp_path / "out.jsonl", tmp_path / "out.json"

    async def run() -> Any:
        async with FakeServer().running() as url:
            args = ["--url", url, "--workload", str(workload), "--no-warm-up"]
            args += ["--out", str(out), "--json", str(summary), "--rate", "50"]
            return await asyncio.to_thread(CliRunner().invoke, bench, args)

    result = asyncio.run(run())
    assert result.exit_code == 0, result.output
    assert "Client lag" in result.output
    assert len(out.read_text(encoding="utf-8").splitlines()) == 5
    document = json.loads(summary.read_text(encoding="utf-8"))
    assert document["schema"] == 1
    assert document["runs"][0]["attainment"] == 1.0


def test_priorities_are_read() -> None:
    """Spaces and negative numbers are fine."""
    assert priorities_of("chat=0, batch=-1") == {"chat": 0, "batch": -1}
    assert priorities_of("") == {}


def test_prometheus_text_is_summed_over_labels() -> None:
    """Counters of several engines add up; comments and bad values are skipped."""
    text = '# TYPE a counter\na{engine="0"} 2.0\na{engine="1"} 3\nb 1e3\nc oops\n'
    assert parse_metrics(text) == {"a": 5.0, "b": 1000.0}


def test_preemptions_are_unknown_without_the_counter() -> None:
    """A server without metrics gives null, not zero."""
    assert preemptions_between({}, {}) == {"recompute": None, "swap": None}
    name = "vllm:num_preemptions_total"
    assert preemptions_between({name: 2.0}, {name: 7.0})["recompute"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"error": {"message": "m"}}', "m"), ('{"detail": "d"}', "d"), ("plain", "plain")],
)
def test_error_bodies_are_read(text: str, message: str) -> None:
    """OpenAI errors, FastAPI errors and plain text all give their sentence."""
    assert message_of(text) == message


SCRIPT = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)\
.serve_forever()
"""


def test_a_live_server_starts_answers_and_is_gone_afterwards(tmp_path: Path) -> None:
    """The with-block owns the process: it answers inside and has ended outside."""
    with LiveServer([], tmp_path / "s.log", program=[sys.executable, "-c", SCRIPT]) as server:
        process = server._process
        assert server.pid is not None
        assert server.ready_after_s is not None
        server.check_alive()
    assert process is not None
    assert process.poll() is not None
    assert server.pid is None


def test_a_server_that_dies_gives_its_last_words(tmp_path: Path) -> None:
    """The error has the exit code and the end of the log."""
    program = [sys.executable, "-c", "print('out of memory'); raise SystemExit(3)"]
    with (
        pytest.raises(ServerDied, match=r"(?s)exit code 3.*out of memory"),
        LiveServer([], tmp_path / "s.log", program=program),
    ):
        pass


def test_contenders_share_the_server_and_name_no_path_of_this_machine() -> None:
    """The commands shown are what a person would type."""
    shared = " ".join(contenders.SERVER_ARGS)
    for contender in contenders.everyone():
        assert shared in contender.command
        assert "/" not in contender.command
    assert [c.key for c in contenders.everyone()] == ["stock", "stock_best", "headway"]


def test_a_damaged_best_setting_says_how_to_make_it_anew(tmp_path: Path) -> None:
    """The sentence names the script."""
    path = tmp_path / "stock_best.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(HeadwayError, match="--write-stock-best"):
        contenders.stock_best(path)


def test_hindsight_picks_the_best_stock_setting_of_the_sweep() -> None:
    """Only the sweep's seed counts, only stock's settings, and only those run at every load."""
    table = _experiment_table()

    def result(key: str, load: str, seed: int, attainment: float) -> dict[str, Any]:
        run = {"attainment": attainment}
        return {"ground": "demo", "contender": key, "load": load, "seed": seed, "run": run}

    played = [
        result("stock", "light", 9, 1.0), result("stock", "heavy", 9, 1.0),
        result("stock-64", "light", 9, 0.8), result("stock-64", "heavy", 9, 0.1),
        result("stock-256", "light", 9, 0.7), result("stock-256", "heavy", 9, 0.7),
        result("stock-512", "light", 9, 0.9), result("stock-64", "heavy", 1, 1.0),
        result("headway", "light", 9, 1.0), result("headway", "heavy", 9, 1.0),
    ]  # fmt: skip
    assert table.best_stock(played, "demo", "light", 9) == "stock-512"
    assert table.best_stock(played, "demo", "heavy", 9) == "stock-256"
    assert table.best_stock(played, "demo", None, 9) == "stock-256"


def test_a_live_lead_has_students_interval() -> None:
    """Three paired differences of 1, 2 and 3 points: 2 points, give or take 4.303 / sqrt(3)."""
    mean, half = _experiment_table().lead([0.51, 0.72, 0.93], [0.50, 0.70, 0.90])
    assert mean == pytest.approx(0.02)
    assert half == pytest.approx(0.01 * 4.3027 / 3**0.5, rel=1e-3)
    assert _experiment_table().lead([0.5], [0.4])[1] == float("inf")


def _experiment_table() -> Any:
    path = Path(__file__).parents[2] / "experiments" / "live" / "table.py"
    spec = importlib.util.spec_from_file_location("experiments_live_table", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(num_attained: int, **changes: Any) -> dict[str, Any]:
    share = num_attained / 100
    spans = {"p50": 1.0, "p95": 2.0, "p99": 3.0, "max": 4.0}
    outcomes = {"finished": 100, "refused": 0, "failed": 0, "timed_out": 0, "aborted": 0}
    return {
        "num_requests": 100, "num_attained": num_attained, "attainment": share,
        "goodput_rps": share, "output_tokens_per_s": 90.0, "ttft_s": spans, "tbt_s": spans,
        "outcomes": outcomes, "preemptions": {"recompute": None}, "per_class": {}, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("stock", "best", "ours", "words"),
    [
        (24, 83, 87, ("3.6 times as many", "4 points more than")),
        (24, 90, 87, ("3 points fewer than",)),
        (0, 87, 87, ("more than the defaults", "as many as the best")),
        (0, 0, 0, ("as many as the defaults", "as many as the best")),
    ],
)
def test_the_verdict_says_it_whichever_way_it_went(
    stock: int, best: int, ours: int, words: tuple[str, ...]
) -> None:
    """Winning, losing and a draw each get an honest sentence."""
    text = verdict(run_of(stock), run_of(best), run_of(ours))
    assert all(word in text for word in words)


def test_the_best_of_a_row_is_marked_by_what_is_shown() -> None:
    """Values that look the same share the mark; a row where all look the same has none."""
    rows = {row.label: row for row in rows_of([run_of(24), run_of(87), run_of(87)])}
    assert rows["promises kept"].best == (False, True, True)
    assert rows["first token, p95"].best == (False, False, False)
    assert rows["preemptions"].shown == ("–", "–", "–")
