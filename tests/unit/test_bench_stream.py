"""Whatever bytes come back, one request ends with a reason, the run goes on, tokens are tokens."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from damaged import CHUNKS, damaged, send_damaged
from wire import DONE, STREAM_HEAD, Exchange, call, chunk, event, serving

from headway.bench.chunks import Answer, ChatChunk
from headway.bench.load import LoadResult, run_load
from headway.bench.probe import parse_metrics, preemptions_between
from headway.bench.show import counting_sentence, failure_sentence
from headway.metrics.record import RequestRecord, RunFacts, summarise, write_records

GOOD = b"".join(map(event, CHUNKS)) + DONE


def load_of(*streams: bytes) -> LoadResult:
    """Return what the load generator makes of each stream, and of a good one last."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + (*streams, GOOD)[int(exchange.asks)])
        exchange.close()

    async def run() -> LoadResult:
        async with serving(answer) as url:
            planned = [call(f"r{i}", str(i)) for i in range(len(streams) + 1)]
            return await run_load(url, planned, timeout_s=20)

    result = asyncio.run(run())
    assert result.records[-1].finished
    return result


def record_of(stream: bytes) -> RequestRecord:
    return load_of(stream).records[0]


def counted(*chunks: Any) -> tuple[int, str]:
    """Return how many tokens a stream of *chunks* has, and what they were counted by."""
    result = load_of(b"".join(map(event, (*chunks, chunk("", "stop")))) + DONE)
    assert result.records[0].finished, result.records[0].detail
    (how,) = set(result.counted_by) - {"ids"}  # The good stream sends ids.
    return result.records[0].num_output_tokens, how


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"null", "not a chat chunk (Expected `object`, got `null`)"),
        (b"[1]", "not a chat chunk"),
        (b"3", "not a chat chunk"),
        (b'{"choices": [null]}', "$.choices[0]"),
        (b'{"choices": {"a": 1}}', "$.choices"),
        (b'{"choices": [{"delta": "x"}]}', "$.choices[0].delta"),
        (b'{"choices": [{"token_ids": 5}]}', "$.choices[0].token_ids"),
        (b'{"choices": [{"de', "not a chat chunk"),
        (b'{"choices": [{"delta": {"content": "\xff"}}]}', "not a chat chunk"),
        (b"[" * 200_000, "not a chat chunk"),
        (b'{"n": ' + b"9" * 5000 + b"}", "without a finish reason"),
        (b'{"error": {"message": "\\u001b[31mout\\nof memory"}}', "\ufffd[31mout of memory"),
        (b'{"error": ' + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}", "a"),
    ],
)
@pytest.mark.parametrize("ended", [True, False])
def test_an_event_that_is_no_chunk_fails_its_request_alone(
    data: bytes, reason: str, ended: bool
) -> None:
    """The reason names what was wrong, on one line, and the next request is served."""
    record = record_of(event(chunk("a")) + b"data: " + data + (b"\n\n" if ended else b""))
    assert record.outcome == "failed"
    assert reason in record.detail
    assert record.detail.isprintable()
    assert record.num_output_tokens == 1


def test_a_line_of_several_mebibytes_is_a_chunk_like_any_other() -> None:
    """The ids of a long prompt come in one line; aiohttp's own limit for lines is lower."""
    long = chunk("", prompt_token_ids=list(range(100_000, 500_000)))
    assert len(event(long)) > 3 * 2**20
    record = record_of(event(long) + event(chunk("a", "stop")))
    assert (record.outcome, record.num_prompt_tokens) == ("finished", 400_000)


def test_a_line_without_an_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A flood fills no memory."""
    monkeypatch.setattr("headway.bench.chunks.MAX_EVENT_BYTES", 2**20)
    assert record_of(b"data: " + b"x" * 2**21).detail == "a line of more than 1 MiB"


@pytest.mark.parametrize(
    "stream",
    [
        GOOD.replace(b"\n\n", b"\n"),
        GOOD.replace(b"\n", b"\r\n"),
        GOOD.replace(b"\n", b"\r"),
        GOOD.replace(b"data: ", b"data:"),
        b": hello\n\nevent: message\nid: 1\n" + GOOD.replace(b"data", b"\ndata:\n\ndata"),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.removesuffix(b"\n\n"),
        GOOD.removesuffix(DONE),
        GOOD.removesuffix(b"\n\n" + DONE),
    ],
)
def test_streams_are_read_however_their_lines_end(stream: bytes) -> None:
    """Comments, other fields, all line ends, a byte order mark, and no end at all."""
    record = record_of(stream)
    assert (record.outcome, record.num_output_tokens) == ("finished", 4)


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "a"},
        {"content": [{"type": "text", "text": "a"}]},
        {"reasoning": "a"},
        {"reasoning_content": "a"},
        {"refusal": "no"},
        {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": ""}}]},
        {"function_call": {"name": "f"}},
        {"role": "assistant", "content": "", "some_new_field": "a"},
    ],
)
def test_tokens_count_wherever_they_are(delta: dict[str, Any]) -> None:
    """Any part of an answer is a token; who speaks is none."""
    empty = {"role": "assistant", "name": "x", "content": "", "reasoning": None, "tool_calls": []}
    chunks = [{"choices": [{"delta": d}]} for d in (empty, delta, delta)]
    assert counted(*chunks) == (2, "chunks")


def test_an_error_that_is_null_is_none() -> None:
    """Some servers write the field in every chunk."""
    assert counted(chunk("a", error=None)) == (1, "chunks")


def test_a_fault_of_our_own_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded as what it is, and the others' figures are kept."""
    take = Answer.take

    def stumble(answer: Answer, chunk: ChatChunk, now_s: float) -> None:
        if chunk.usage == "stumble":
            raise ZeroDivisionError("here")
        take(answer, chunk, now_s)

    monkeypatch.setattr(Answer, "take", stumble)
    record = record_of(event(chunk("a", usage="stumble")))
    assert record.outcome == "failed"
    assert record.detail == "load generator: ZeroDivisionError: here"


def usage(num_tokens: Any, hidden: int = 0, **more: Any) -> dict[str, Any]:
    details = {"reasoning_tokens": hidden}
    return {"completion_tokens": num_tokens, "completion_tokens_details": details, **more}


def only_usage(*args: Any, **more: Any) -> dict[str, Any]:
    return {"choices": [], "usage": usage(*args, **more)}


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([chunk("ab"), chunk("c"), only_usage(7)], (7, "usage")),
        ([chunk("a"), chunk("b"), only_usage(2)], (2, "usage")),
        ([chunk("a", usage=usage(3)), chunk("b", usage=usage(4))], (4, "usage")),
        ([chunk("a", usage=usage(0)), chunk("b"), only_usage(5)], (5, "usage")),
        ([chunk("a", usage=usage(1)), only_usage(3)], (3, "usage")),
        ([chunk("a", usage=usage(2)), chunk("", usage=usage(3))], (3, "usage")),
        ([chunk("a"), chunk("b"), only_usage(1)], (2, "chunks")),
        ([chunk("a"), only_usage(10**18)], (1, "chunks")),
        ([chunk("a"), only_usage(-1)], (1, "chunks")),
        ([chunk("a"), only_usage(True)], (1, "chunks")),
        ([chunk("a"), only_usage("5")], (1, "chunks")),
        ([chunk("a"), {"usage": [5]}], (1, "chunks")),
        ([chunk("a"), only_usage(50, 47)], (3, "usage")),
        ([{"choices": [{"delta": {"reasoning": "a"}}]}, only_usage(50, 47)], (50, "usage")),
    ],
)
def test_usage_tells_what_chunks_of_several_tokens_hold(
    chunks: list[Any], expected: tuple[int, str]
) -> None:
    """Unless it is absurd, beyond what was asked for, or speaks of reasoning nobody was shown."""
    assert counted(*chunks) == expected


def test_tokens_of_a_usage_lie_at_their_chunks() -> None:
    """Seven tokens in two chunks are three at the first and four at the second instant."""
    stream = event(chunk("a")) + event(chunk("b")) + event(only_usage(7, prompt_tokens=12))

    async def slowly(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + stream[:40])
        for at in range(40, len(stream)):
            await exchange.send(stream[at : at + 1])
            await asyncio.sleep(0)
        await exchange.send(event(chunk("", "stop")) + DONE)
        exchange.close()

    async def run() -> LoadResult:
        async with serving(slowly) as url:
            return await run_load(url, [call("r")], timeout_s=20)

    record = asyncio.run(run()).records[0]
    assert record.num_prompt_tokens == 12
    first, second = sorted(set(record.emitted_at_s))
    assert record.emitted_at_s == (first,) * 3 + (second,) * 4


def test_the_report_says_what_tokens_were_counted_by() -> None:
    """Ids need no word; usage and chunks do."""
    assert counting_sentence(load_of(GOOD)) is None
    by_usage = load_of(event(chunk("ab", "stop")) + event(only_usage(7)))
    assert "of 1 requests by the server's usage" in str(counting_sentence(by_usage))
    by_chunks = load_of(event(chunk("ab", "stop")))
    assert "of 1 requests as one a chunk" in str(counting_sentence(by_chunks))


NUM_STREAMS = int(os.environ.get("HEADWAY_FUZZ_STREAMS") or 400)
"""Damaged streams sent; 100,000 take ten minutes."""


def fuzzed(first_seed: int, num_streams: int) -> LoadResult:
    """Return the result of one run in which each request gets another damaged stream."""

    async def run() -> LoadResult:
        async with serving(send_damaged) as url:
            planned = [
                call(f"r{seed}", str(seed), arrived_at_s=(seed - first_seed) / 2000)
                for seed in range(first_seed, first_seed + num_streams)
            ]
            return await run_load(url, planned, timeout_s=60)

    return asyncio.run(run())


def check(result: LoadResult, num_streams: int, folder: Path) -> None:
    """Assert that nothing was lost, that every figure is finite and that files read back."""
    assert len(result.records) == num_streams
    for record in result.records:
        assert record.outcome in ("finished", "failed", "refused", "aborted"), record
        assert not record.detail.startswith("load generator:"), record
        assert record.detail.isprintable()
        assert record.finished or record.detail
        times_s = (record.sent_at_s, *record.emitted_at_s, record.ended_at_s)
        assert all(times_s[i] <= times_s[i + 1] for i in range(len(times_s) - 1))
        assert record.num_output_tokens <= 5000
    run = summarise(result.records, RunFacts(policy="x", engine="live"))
    assert sum(run["outcomes"].values()) == num_streams
    write_records(folder / "out.jsonl", result.records)
    assert (folder / "out.jsonl").read_text().count("\n") == num_streams
    failure_sentence(result.records)


def test_no_bytes_end_a_run_or_lose_its_results(tmp_path: Path) -> None:
    """A few hundred of the streams; experiments/LOG.md tells of a hundred thousand."""
    result = fuzzed(0, NUM_STREAMS)
    check(result, NUM_STREAMS, tmp_path)
    outcomes = {record.outcome for record in result.records}
    assert {"finished", "failed", "refused"} <= outcomes


def test_the_damage_is_of_many_kinds() -> None:
    """Else the test above would prove little."""
    reasons = {record.detail.split(":")[0][:24] for record in fuzzed(0, 400).records}
    assert len(reasons) >= 8, reasons
    assert damaged(3) == damaged(3)


def test_counters_that_are_no_numbers_are_unknown() -> None:
    """A page of metrics that says NaN must not cost a run its results."""
    name = "vllm:num_preemptions_total"
    for text in (f"{name} NaN", f"{name} +Inf", f"{name} oops"):
        assert preemptions_between({}, parse_metrics(text))["recompute"] is None
