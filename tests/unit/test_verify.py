"""``headway verify`` before stand-in servers: faults are one sentence, rows follow their rules."""

from __future__ import annotations

import asyncio
import json
import os
import select
import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from told import Kept
from wire import Exchange, Handler, chunk, serving

from headway import registry
from headway.bench import verification, verify_rounds
from headway.bench.access import Access
from headway.bench.verify_counts import Counts, StepFigures, step_figures
from headway.bench.verify_report import bare, shareable, without_places
from headway.bench.verify_rows import ROWS, Findings, rows_of
from headway.bench.verify_servers import Started
from headway.bench.verify_tokens import TokenComparison, tiny_arguments
from headway.cli.main import main
from headway.engines.journal import Journal
from headway.engines.vllm.watch import Watch
from headway.metrics.prometheus import exposition
from headway.slo import Slo

FEATURES: dict[str, Any] = {
    "vllm": "0.32.0", "is_tried": True, "num_hooks": 90, "scheduler": "SyncHeadway",
    "mistake": None, "unknown": None, "device": "cpu", "dtype": "float32",
    "on": {"prefix caching": True, "KV connector": False, "attention groups": "FullAttentionSpec"},
    "sizes": {"kv_blocks": 719, "block_tokens": 32, "block_bytes": 2**20, "kv_groups": 1},
}  # fmt: skip
STEPS = StepFigures(
    100, 1.0, {0.05: 0.3, 0.1: 0.6, 0.2: 0.9, 0.3: 1.0, 0.5: 1.0}, 90, 0.01, 1e-3, 0.01
)


class StandIn:
    """A vLLM without a model: answers at once, each prompt with tokens of its own.

    Args:
        model: The name it serves.
        metrics: What its ``/metrics`` says.
        lasts: Generations after which it breaks every connection off.
    """

    def __init__(self, model: str = "m", metrics: str = "", lasts: float = float("inf")) -> None:
        self.model, self.metrics, self.lasts = model, metrics, lasts
        self.prompts: list[str] = []
        self.promised = 0

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/models":
            rows = [{"id": self.model, "owned_by": "vllm"}]
            await (exchange.answer(200, {"data": rows}) if self.lasts > 0 else self._end(exchange))
        elif exchange.path == "/metrics":
            data = self.metrics.encode()
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        elif exchange.path == "/headway/state":
            told = {"features": FEATURES} if self.metrics else {}
            await exchange.answer(200 if told else 404, told)
        else:
            self.lasts -= 1
            await (self._generate(exchange) if self.lasts > 0 else self._end(exchange))

    async def _end(self, exchange: Exchange) -> None:
        exchange.close()

    async def _generate(self, exchange: Exchange) -> None:
        body = exchange.body
        self.promised += "vllm_xargs" in body
        num_tokens = body["max_tokens"]
        if exchange.path == "/v1/completions":
            self.prompts += [body["prompt"]] if isinstance(body["prompt"], str) else []
            ids = [len(body["prompt"])] * num_tokens
            await exchange.answer(200, {"choices": [{"token_ids": ids}]})
            return
        self.prompts.append(exchange.asks)
        first, last = chunk("a"), chunk("b", "length")
        first["choices"][0]["token_ids"], last["choices"][0]["token_ids"] = [1], [2]
        await exchange.stream(first, last)


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few requests, no waits, files in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verify_rounds, "MOST_REQUESTS", 8)
    monkeypatch.setattr("headway.bench.calls.WARM_UP_GAP_S", 0.0)
    monkeypatch.setattr(verify_rounds, "LOAD", 100.0)  # Arrivals take no time.
    monkeypatch.setattr(verification, "TELL_WITHIN_S", 0.0)
    monkeypatch.setattr("headway.cli.verify.stop_on_signals", lambda: None)
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        main(["verify", *argv])
    return int(stop.value.code or 0)


def verified(*handlers: Handler) -> int:
    """Return the exit code before stand-ins, stock's first."""

    async def all_served() -> int:
        async with AsyncExitStack() as stack:
            urls = [await stack.enter_async_context(serving(one)) for one in handlers]
            return await asyncio.to_thread(run, *(w for url in urls for w in ("--url", url)))

    return asyncio.run(all_served())


async def other(exchange: Exchange) -> None:
    """A server of the same interface that is no vLLM."""
    await exchange.answer(200, {"data": [{"id": "m", "owned_by": "someone"}]})


@pytest.fixture
def metrics(fake_engine: Any) -> str:
    """What a Headway server shows that served a few requests."""
    kept = Kept()
    core = registry.build("headway")
    engine = fake_engine(Journal(core, Watch(core, kept)))  # type: ignore[arg-type]
    for i in range(8):
        engine.arrive(f"r{i}", 40, 20, slo=Slo(ttft_s=9.0, tbt_s=9.0) if i % 2 else Slo())
    while engine.core.live.requests:
        engine.step()
    return exposition({"0": kept.last[-1] | {"age_s": 0.0}}).decode()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ((), "Give a MODEL, or two --url"),
        (("--url", "http://127.0.0.1:9"), "--url is given 1 times, not twice"),
        (("--url", "http://a", "--url", "http://b", "smollm2"), "Both are given"),
        (("smollm2", "--url", "http://a"), "Both are given"),
        (("--url", "http://127.0.0.1:9", "--url", "http://127.0.0.1:9/"), "are the same server"),
        (("--url", "http://127.0.0.1:9", "--url", "http://127.0.0.1:8"), "is it running?"),
        (("--url", "localhost:1", "--url", "localhost:2"), "must start with http://"),
        (("--nonsense",), "There is no option --nonsense"),
        (("./no-such-model",), "is not there"),
    ],
)
def test_mistakes_are_one_sentence(
    argv: tuple[str, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, nothing started and nothing written."""
    assert run(*argv) == 2
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not Path("verify-out").exists()


@pytest.mark.parametrize(
    ("handlers", "sentence"),
    [
        ((StandIn(), other), "does not say it is vLLM"),
        ((StandIn("one"), StandIn("two")), "must serve the same model"),
        ((StandIn(metrics="headway_steps_aside_total 0\n"), StandIn()), "stock vLLM's --url first"),
    ],
)
def test_servers_that_cannot_be_compared(
    handlers: tuple[Handler, ...], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Something else, another model, the wrong order: found before anything is measured."""
    assert verified(*handlers) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("verify-out").exists()


@pytest.mark.parametrize("lasts", [3, 30, 75])
def test_a_server_that_dies_in_the_middle(lasts: int, capsys: pytest.CaptureFixture[str]) -> None:
    """While the speed, the rounds or the promises are measured: one sentence, and a file."""
    assert verified(StandIn(lasts=lasts), StandIn()) == 2
    told = capsys.readouterr().err
    assert told.startswith("headway: ")
    assert told.count("\n") == 1
    assert "what was found before is in verify-out" in told
    document = json.loads(Path("verify-out/verify.json").read_text())
    assert without_places(told, Path("verify-out")).startswith(
        f"headway: {document['stopped'][:-1]};"
    )
    assert "127.0.0.1" in told
    assert "127.0.0.1" not in json.dumps(document)
    assert set(document["verdicts"].values()) == {"not measured"}
    assert all("The run ended before" in row["found"] for row in document["rows"])


def test_two_running_servers(metrics: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every row that needs no flag at the start is filled, and no text of a prompt is written."""
    stock, headway = StandIn(), StandIn(metrics=metrics)
    assert verified(stock, headway) == 0
    document = json.loads(Path("verify-out/verify.json").read_text())
    assert list(document["verdicts"]) == list(ROWS)
    found = {row["key"]: row["found"] for row in document["rows"]}
    missing = {key for key, verdict in document["verdicts"].items() if verdict == "not measured"}
    # The stand-in counts no further step: none since the warm-up.
    assert missing == {"tokens", "step_error", "beyond_bound", "plan"}
    assert "32 of 32 answers are stock's" in found["tokens"]
    assert "start Headway with --max-model-len 512 --num-gpu-blocks-override 40" in found["tokens"]
    assert "no step since the warm-up" in found["plan"]
    assert len(document["rows"][5]["figures"]["stock"]) == verification.ROUNDS
    # The mixed load on both; of the 32 answers, which stock is asked for twice, every other one.
    assert (stock.promised, headway.promised) == (24 + 2 * 16, 24 + 16)
    page = Path("verify-out/verify.html").read_text()
    prompts = {p[:40] for p in stock.prompts}
    assert len(prompts) > 60
    for text in (json.dumps(document, ensure_ascii=False), page):
        assert not [p for p in prompts if p in text or json.dumps(p)[1:-1] in text]
        assert "127.0.0.1" not in text
    assert "could not be measured" in capsys.readouterr().out


def test_a_headway_server_without_its_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """What needs its metrics says how to have them."""
    monkeypatch.setattr(verification, "ROUNDS", 2)
    assert verified(StandIn(), StandIn()) == 0
    document = json.loads(Path("verify-out/verify.json").read_text())
    by_key = {row["key"]: row for row in document["rows"]}
    for key in ("hooks", "step_error", "beyond_bound", "plan"):
        assert by_key[key]["verdict"] == "not measured"
        assert "start it with --page" in by_key[key]["found"]
    assert "--num-gpu-blocks-override" in by_key["tokens"]["found"]


DYING = """
import http.server, json, os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open("child", "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "m", "owned_by": "vllm"}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        print("headway: the stand-in has had enough.", flush=True)
        self.connection.shutdown(2); time.sleep(0.5)  # As a process that is being torn down.
        os._exit(3)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)\
.serve_forever()
"""


def test_a_started_server_that_dies_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own last word is in the sentence, and its children are gone."""
    monkeypatch.setattr("headway.bench.verify_servers.HEADWAY_SERVE", (sys.executable, "-c", DYING))
    assert run("smollm2") == 2
    told = capsys.readouterr().err
    assert "Stock vLLM ended by itself or never answered (the stand-in has had enough)" in told
    assert "its log is verify-out/stock.log" in told
    assert told.count("\n") == 1
    assert has_ended(int(Path("child").read_text()))


def has_ended(pid: int) -> bool:
    """Whether a process that was killed is gone, once the kernel has come to it."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    return bool(select.select([process], [], [], 30.0)[0])


def test_a_cache_that_cannot_be_made_small_is_a_reason(tmp_path: Path) -> None:
    """The last server not starting ends no run: its row says why."""
    program = (sys.executable, "-c", "print('headway: Too few blocks.'); raise SystemExit(2)")
    started = Started("m", (), tmp_path, lambda waited_s: None, program=program)
    shown: Any = type("Quiet", (), {"stage": lambda self, text: None})()
    one = verification.Verification(started, Access(), shown, 600.0)
    one.seen.features = FEATURES
    one._press()
    (row,) = [row for row in rows_of(one.seen) if row.key == "tokens"]
    assert row.verdict == "not measured"
    assert "Headway with a tiny KV cache ended by itself or never answered (Too few" in row.found


def a_run(kept: int = 90, tokens_per_s: float = 100.0, gap_s: float = 0.1) -> dict[str, Any]:
    return {
        "num_requests": 100, "num_attained": kept, "attainment": kept / 100, "rate_rps": 2.0,
        "output_tokens_per_s": tokens_per_s, "tbt_s": {"p50": gap_s / 2, "p99": gap_s},
        "outcomes": {}, "client_lag_s": {}, "per_class": {}, "duration_s": 10.0,
    }  # fmt: skip


def good() -> Findings:
    return Findings(
        features=FEATURES,
        tokens=TokenComparison(32, 0, 0, {"swap": 3, "recompute": 2}),
        steps=STEPS,
        stock=[a_run(tokens_per_s=t) for t in (100.0, 102.0)],
        headway=[a_run(), a_run()],
        mixed={"stock": a_run(), "headway": a_run()},
    )


def verdict(key: str, **changes: Any) -> str:
    return next(row.verdict for row in rows_of(replace(good(), **changes)) if row.key == key)


def test_a_good_run_is_ok_in_every_row_and_an_empty_one_says_why() -> None:
    """No row is empty, whatever was seen."""
    assert {row.verdict for row in rows_of(good())} == {"ok"}
    for row in rows_of(Findings()):
        assert (row.verdict, row.found) == ("not measured", "It was not reached.")


def test_the_page_tells_the_rules() -> None:
    """Word for word, in the order of the table."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "verify.md").read_text(encoding="utf-8")
    told = [f"| {title} | {rule} |" for title, rule in ROWS.values()]
    assert "\n".join(told) in page


LOOKS: list[tuple[str, str, Any, Any]] = [
    ("hooks", "num_asides", 0, 1),
    ("hooks", "features", FEATURES, {**FEATURES, "is_tried": False}),
    ("hooks", "features", FEATURES, {**FEATURES, "unknown": "Beyond Headway."}),
    ("tokens", "tokens", TokenComparison(32, 4, 2, {"swap": 1, "recompute": 1}),
     TokenComparison(32, 5, 2, {"swap": 1, "recompute": 1})),
    ("tokens", "tokens", TokenComparison(32, 0, 0, {"swap": 1, "recompute": 1}),
     TokenComparison(32, 1, 0, {"swap": 1, "recompute": 1})),
    ("tokens", "tokens", TokenComparison(32, 0, 3, {"swap": 1, "recompute": 1}),
     TokenComparison(32, 0, 3, {"swap": 0, "recompute": 1})),
    ("step_error", "steps", replace(STEPS, within={0.2: 0.5, 0.3: 1.0}),
     replace(STEPS, within={0.2: 0.49, 0.3: 0.49, 0.5: 0.49})),
    ("beyond_bound", "steps", replace(STEPS, beyond_share=0.05), replace(STEPS, beyond_share=0.06)),
    ("plan", "steps", replace(STEPS, plan_share=0.05), replace(STEPS, plan_share=0.06)),
    ("throughput", "headway", [a_run(tokens_per_s=96.0)], [a_run(tokens_per_s=95.0)]),
    ("gap", "headway", [a_run(gap_s=0.11)], [a_run(gap_s=0.111)]),
    ("promises", "mixed", {"stock": a_run(90), "headway": a_run(80)},
     {"stock": a_run(90), "headway": a_run(79)}),
]  # fmt: skip


@pytest.mark.parametrize(("key", "what", "fine", "off"), LOOKS)
def test_each_rule_has_an_edge(key: str, what: str, fine: Any, off: Any) -> None:
    """What is within it is ok, what is just beyond it is to be looked at."""
    assert (verdict(key, **{what: fine}), verdict(key, **{what: off})) == ("ok", "look")


def test_step_figures_are_what_the_server_counted(metrics: str) -> None:
    """Between two looks, from the text of /metrics; nothing in between is no figure."""
    counts = Counts.parse(metrics)
    found = step_figures(counts)
    assert found is not None
    lines = [line.rpartition(" ") for line in metrics.splitlines() if not line.startswith("#")]

    def summed(start: str, label: str = "") -> float:
        return sum(float(v) for k, _, v in lines if k.startswith(start) and label in k)

    ratio = "headway_step_prediction_ratio"
    assert found.num_steps == summed(f"{ratio}_count") > 20
    inside = summed(f"{ratio}_bucket", 'le="1.2"') - summed(f"{ratio}_bucket", 'le="0.8"')
    assert found.within[0.2] == pytest.approx(inside / found.num_steps)
    assert found.num_bounded == summed("headway_steps_bounded_total") > 0
    share = summed("headway_plan_seconds_sum") / summed("headway_step_seconds_sum")
    assert found.plan_share == pytest.approx(share)
    assert step_figures(counts.since(counts)) is None
    assert step_figures(Counts.parse("no metrics {")) is None


def test_what_makes_a_cache_tiny() -> None:
    """1,280 tokens in blocks of any size and of every group; swap only where it can be."""
    args, swaps = tiny_arguments(FEATURES, ["--additional-config", '{"other": 1}'])
    assert args[:4] == ["--max-model-len", "512", "--num-gpu-blocks-override", "40"]
    assert float(args[args.index("--swap-gib") + 1]) == pytest.approx(14 * 2**20 / 2**30, abs=1e-6)
    config = json.loads(args[args.index("--additional-config") + 1])
    assert config == {"other": 1, "headway": {"options": {"swap": "always"}}}
    assert swaps
    large = {**FEATURES["sizes"], "block_tokens": 128, "block_bytes": 2**22}  # As before, by token.
    in_small, swaps = tiny_arguments({**FEATURES, "sizes": large})
    assert in_small[2:8] == ["--block-size", "32", *args[2:6]]
    assert swaps
    on_gpu, swaps = tiny_arguments({**FEATURES, "sizes": large, "device": "cuda"})
    assert (on_gpu[2:], swaps) == (["--num-gpu-blocks-override", "10"], False)
    several = {**FEATURES["sizes"], "block_tokens": 16, "kv_groups": 3, "block_bytes": None}
    assert tiny_arguments({**FEATURES, "sizes": several}) == ([*args[:3], "240"], False)


def test_keys_and_folders_stay_here() -> None:
    """In both ways of giving an option."""
    words = ["--api-key", "secret", "--api_key=secret", "--tokenizer", "/home/me/models/t", "-tp=2"]
    shown = shareable(words)
    assert shown == ["--api-key", "…", "--api_key=…", "--tokenizer", "t", "-tp=2"]
    assert bare("/home/me/models/x") == "x"
    assert bare("org/name") == "org/name"
