"""``headway serve smollm2``: a real server, a real model, real HTTP clients."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.bench.server import HEADWAY_SERVE, LiveServer, free_port
from headway.engines.journal import EVERY_S

pytestmark = pytest.mark.live

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, teach: Callable[..., None]
) -> Iterator[LiveServer]:
    """One server for the whole file: it refuses what it cannot keep, and knows one class."""
    folder: Path = tmp_path_factory.mktemp("serve")
    (folder / "slo.toml").write_text("[classes.chat]\nttft_s = 60\ntbt_s = 10\n")
    args = ["smollm2", "--overload", "refuse", "--slo", str(folder / "slo.toml")]
    with LiveServer(args, folder / "server.log") as running:
        teach(running.url)
        yield running


async def post(
    server: LiveServer, path: str, body: dict[str, Any], sent: dict[str, str] | None = None
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of one request."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(server.url + path, json={"model": "smollm2", **body}, headers=sent) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.text()


def chat(question: str, stream: bool = False, **xargs: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 16,
        "temperature": 0,
        "stream": stream,
        "vllm_xargs": xargs,
    }


async def num_running(server: LiveServer) -> float:
    """Return how many requests the engine holds, by vLLM's own metrics."""
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as answer:
        text = await answer.text()
    found = re.findall(r"^vllm:num_requests_(?:running|waiting)\{.*\} (.*)$", text, re.MULTILINE)
    return sum(float(value) for value in found)


@STREAMED
async def test_it_answers(server: LiveServer, stream: bool) -> None:
    """The embedded model is real: it knows a capital."""
    question = chat("What is the capital of France?", stream, slo_class="chat", slo_ttft_ms=60000)
    status, headers, text = await post(server, "/v1/chat/completions", question)
    assert status == 200
    assert "Paris" in text
    assert ("event-stream" in headers["Content-Type"]) == stream


@STREAMED
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
@pytest.mark.parametrize(
    "xargs",
    [{"slo_ttft_ms": -5}, {"slo_class": "gold"}, {"slo_speed": 1}],
    ids=lambda x: next(iter(x)),
)
async def test_a_bad_promise_is_400(
    server: LiveServer, path: str, xargs: dict[str, Any], stream: bool
) -> None:
    """On every endpoint that generates, and the sentence names the field."""
    body = {**BODIES[path], "stream": stream, "vllm_xargs": xargs}
    status, _, text = await post(server, path, body)
    error = json.loads(text)["error"]
    assert (status, error["code"], error["type"]) == (400, 400, "BadRequestError")
    assert next(iter(xargs)) in error["message"]


BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": chat("Hello"),
    "/v1/completions": {"prompt": "Hello", "max_tokens": 4},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
}


@STREAMED
@pytest.mark.parametrize("path", BODIES)
async def test_a_promise_that_cannot_be_kept_is_429_at_once(
    server: LiveServer, path: str, stream: bool
) -> None:
    """A microsecond to the first token: refused before anything is streamed."""
    body = {**BODIES[path], "stream": stream, "vllm_xargs": {"slo_ttft_ms": 0.001}}
    status, headers, text = await post(server, path, body)
    assert status == 429, text
    assert int(headers["Retry-After"]) >= 1
    assert json.loads(text)["error"]["type"] == "rate_limit_exceeded"


def loads_of(headers: Mapping[str, str]) -> dict[str, float]:
    """Return what the answer says of the server's load, in the format TEXT."""
    form, _, pairs = headers["endpoint-load-metrics"].partition(" ")
    assert form == "TEXT"
    return {name: float(value) for name, value in (p.split("=") for p in pairs.split(", "))}


async def test_every_answer_reports_the_load(server: LiveServer) -> None:
    """Where it is asked for: whole answers, streams, refusals and mistakes, once each. A refusal
    counts as an error of the server; without the question there is no report."""
    path, ask = "/v1/completions", {"endpoint-load-metrics-format": "text"}
    short = BODIES[path]
    for body, expected in (
        (short, 200),
        ({**short, "stream": True}, 200),
        ({**short, "vllm_xargs": {"slo_ttft_ms": 0.001}}, 429),
        ({**short, "vllm_xargs": {"slo_ttft_ms": -1}}, 400),
    ):
        status, headers, text = await post(server, path, body, ask)
        assert status == expected, text
        told = loads_of(headers)
        assert told["rps_fractional"] > 0
        assert told["application_utilization"] > 0
    assert told["eps"] > 0
    as_json = (await post(server, path, short, {**ask, "endpoint-load-metrics-format": "JSON"}))[1]
    report = json.loads(as_json["endpoint-load-metrics"].removeprefix("JSON "))
    assert report["named_metrics"].keys() >= {"kv_cache_usage_perc", "num_requests_waiting"}
    assert "endpoint-load-metrics" not in (await post(server, path, short))[1]


async def test_the_reported_load_follows_the_server(server: LiveServer) -> None:
    """More while eight streams run, on an answer that begins meanwhile; none when they have gone.
    vLLM's own figures say the same by their names."""
    ask = {"endpoint-load-metrics-format": "TEXT"}
    long = {"prompt": "One two three. " * 20, "max_tokens": 400, "ignore_eos": True, "stream": True}
    streams = [asyncio.create_task(post(server, "/v1/completions", long)) for _ in range(8)]
    while await num_running(server) < 8:
        await asyncio.sleep(0.1)
    await asyncio.sleep(EVERY_S)
    _, headers, _ = await post(server, "/v1/completions", BODIES["/v1/completions"], ask)
    busy = loads_of(headers)
    assert busy["named_metrics.headway_pressure"] > 0
    assert busy["named_metrics.kv_cache_usage_perc"] > 0
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    while await num_running(server):
        await asyncio.sleep(0.1)
    async with (
        aiohttp.ClientSession() as session,
        session.get(server.url + "/v1/models", headers=ask) as answer,
    ):
        idle = loads_of(answer.headers)
    assert idle["application_utilization"] < busy["application_utilization"]
    names = ("headway_pressure", "kv_cache_usage_perc", "num_requests_waiting")
    assert [idle[f"named_metrics.{name}"] for name in names] == [0.0, 0.0, 0.0]


async def test_malformed_json_gets_vllms_own_answer(server: LiveServer) -> None:
    """The edge has no opinion on it."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            server.url + "/v1/completions",
            data=b'{"vllm_xargs": {"slo_ttft_ms": ',
            headers={"Content-Type": "application/json"},
        ) as answer,
    ):
        assert 400 <= answer.status < 500


async def test_a_client_that_hangs_up_frees_the_engine(server: LiveServer) -> None:
    """Through the edge, mid-stream: the request is gone from the engine soon after."""
    body = {**chat("Count to one thousand.", stream=True), "max_tokens": 4000, "ignore_eos": True}
    async with aiohttp.ClientSession() as session:
        url = server.url + "/v1/chat/completions"
        async with session.post(url, json={"model": "smollm2", **body}) as answer:
            await answer.content.readline()
    deadline_s = time.monotonic() + 10
    while await num_running(server) and time.monotonic() < deadline_s:
        pass
    assert await num_running(server) == 0


def test_a_model_that_is_not_there_ends_with_an_error(tmp_path: Path) -> None:
    """A wrong name fails; it does not hang or serve something else."""
    done = subprocess.run(
        [*HEADWAY_SERVE, str(tmp_path / "none"), "--port", str(free_port())],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
