"""Refusals, silence and a server that dies half way: an honest table and exit code."""

from __future__ import annotations

import asyncio
import datetime
import json
from email.utils import format_datetime
from pathlib import Path

import pytest
from wire import (
    ANSWER,
    STREAM_HEAD,
    Exchange,
    Handler,
    benched,
    call,
    chunk,
    event,
    load_of,
    serve_well,
    serving,
)

from headway.bench.client import told_wait_s
from headway.bench.load import LoadResult, run_load


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to a folder of the test's own, and no key comes from the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def refusing(num_refusals: int, *headers: str, status: int = 429) -> Handler:
    """Refuse each request that often, then serve it."""
    num_asked: dict[str, int] = {}

    async def answer(exchange: Exchange) -> None:
        num_asked[exchange.asks] = num_asked.get(exchange.asks, 0) + 1
        if num_asked[exchange.asks] <= num_refusals:
            await exchange.answer(status, {"error": {"message": "full"}}, *headers)
        else:
            await exchange.stream(*ANSWER)

    return answer


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_followed_only_on_request(status: int) -> None:
    """A request counts once; its wait counts from its first arrival; tries are counted apart."""
    handler = refusing(2, "Retry-After: 0.05", status=status)
    plain = load_of(handler).records[0]
    assert (plain.outcome, plain.detail) == ("refused", f"HTTP {status}: full")
    for max_retries, outcome, num_retries in (
        (1, "refused", 1),
        (2, "finished", 2),
        (9, "finished", 2),
    ):
        handler = refusing(2, "Retry-After: 0.05", status=status)
        result = load_of(handler, num_requests=3, max_retries=max_retries)
        assert [record.outcome for record in result.records] == [outcome] * 3
        assert result.num_retries == 3 * num_retries
        ended_s = [record.ended_at_s - record.arrived_at_s for record in result.records]
        assert min(ended_s) >= 0.05 * num_retries


def test_a_wait_beyond_the_timeout_is_not_followed() -> None:
    """The reason says so; a refusal that told nothing, or nonsense, is not followed either."""
    handler = refusing(1, "Retry-After: 300")
    (record,) = load_of(handler, max_retries=5, timeout_s=5).records
    assert record.outcome == "refused"
    assert record.detail.startswith("told to wait 300 s, longer than the timeout")
    for headers in ((), ("Retry-After: soon",), ("Retry-After: nan",), ("Retry-After: -1",)):
        assert load_of(refusing(1, *headers), max_retries=5).records[0].outcome == "refused"


def test_retry_after_may_be_a_date() -> None:
    """RFC 9110 allows both; a date gone by is now."""
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=90)
    assert 0 < (told_wait_s(format_datetime(at, usegmt=True)) or 0) <= 90
    assert told_wait_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert told_wait_s("Wed, 99 Oct 2015") is None
    assert told_wait_s("9" * 5000) == float("inf")


def test_a_stopped_run_waits_for_no_retry() -> None:
    """A request that waits for its second try is aborted like one in flight."""

    async def run() -> LoadResult:
        refused = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.answer(429, {}, "Retry-After: 50")
            refused.set()

        async with serving(answer) as url:
            load = run_load(url, [call("r")], timeout_s=60, max_retries=1)
            task = asyncio.create_task(load)
            await refused.wait()
            await asyncio.sleep(0.1)
            task.cancel()
            return await task

    result = asyncio.run(run())
    assert (result.was_stopped, result.records[0].outcome) == (True, "aborted")


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\nX: ", STREAM_HEAD])
def test_slow_headers_and_silence_time_out(said: bytes) -> None:
    """However much of the head came, the reason says that no answer did."""

    async def mumble(exchange: Exchange) -> None:
        await exchange.send(said)
        while True:
            await asyncio.sleep(0.02)
            await exchange.send(b"y" if said.endswith(b" ") else b"")

    (record,) = load_of(mumble, timeout_s=0.3).records
    assert (record.outcome, record.detail) == ("timed_out", "no answer after 0.3 s")


@pytest.mark.parametrize("rest", [b"zz\r\n", b"3\r\nabc\r\nzz", b"3\r\nabcd"])
def test_a_body_whose_framing_breaks_ends_at_once(rest: bytes) -> None:
    """Not at the timeout: the server has long gone."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD.replace(b"close", b"close\r\nTransfer-Encoding: chunked"))
        await asyncio.sleep(0.05)  # Head and body are to arrive apart.
        await exchange.send(rest)
        exchange.close()

    (record,) = load_of(answer, timeout_s=60).records
    assert (record.outcome, record.detail[:11]) == ("failed", "connection:")


@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_an_answer_that_is_no_stream_is_named(kind: str) -> None:
    """A server that does not stream, or a page of a proxy with status 200."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD.replace(b"text/event-stream", kind.encode()))
        await exchange.send(b'{"choices": [{"message": {"content": "hi"}}]}')
        exchange.close()

    (record,) = load_of(answer).records
    assert record.detail == f"an answer of {kind} without any chat chunk"


def dying(after: int) -> Handler:
    """Serve so many requests, then die: hang up in the middle of the next one, then before any."""
    num_asked = 0

    async def answer(exchange: Exchange) -> None:
        nonlocal num_asked
        if exchange.path != "/v1/chat/completions":
            return await serve_well(exchange)
        num_asked += 1
        if num_asked <= after:
            return await serve_well(exchange)
        if num_asked == after + 1:
            await exchange.send(STREAM_HEAD.replace(b"close", b"close\r\nContent-Length: 9999"))
            await exchange.send(event(chunk("a")))
        return exchange.close()

    return answer


@pytest.mark.parametrize(
    ("handler", "code", "outcomes"),
    [
        (serve_well, 0, {"finished": 4}),
        (dying(2), 1, {"finished": 2, "failed": 2}),
        (dying(0), 1, {"failed": 4}),
    ],
)
def test_the_exit_code_tells_of_failures_and_the_files_are_written(
    handler: Handler, code: int, outcomes: dict[str, int]
) -> None:
    """The table, the summary and the lines have every request, whatever became of it."""
    result = benched(handler)
    assert result.exit_code == code, result.output
    run = json.loads(Path("out.json").read_text(encoding="utf-8"))["runs"][0]
    assert {name: n for name, n in run["outcomes"].items() if n} == outcomes
    assert (run["num_requests"], run["num_retries"]) == (4, 0)
    assert run["tokens_counted_by"]["chunks"] >= outcomes.get("finished", 0) if code == 0 else True
    assert len(Path("out.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert ("were not served; most often: connection" in result.output) == (code == 1)
    assert "\x1b" not in result.output


def test_refusals_are_results_and_retries_are_told() -> None:
    """A server that refuses some has done what it says; one that refuses all served nobody."""

    async def half(exchange: Exchange) -> None:
        if exchange.path == "/v1/chat/completions" and int(exchange.asks) % 2:
            await exchange.answer(429, {}, "Retry-After: 0")
        else:
            await serve_well(exchange)

    async def none(exchange: Exchange) -> None:
        if exchange.path == "/v1/chat/completions":
            await exchange.answer(503, {})
        else:
            await serve_well(exchange)

    result = benched(half, "--retries", "2")
    assert result.exit_code == 0, result.output
    assert "Retries: 4" in result.output
    assert benched(none).exit_code == 1
