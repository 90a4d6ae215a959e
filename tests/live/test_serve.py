"""``headway serve smollm2``: a real server, a real model, real HTTP clients."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.bench.server import HEADWAY_SERVE, LiveServer, free_port

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
    server: LiveServer, path: str, body: dict[str, Any]
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of one request."""
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(server.url + path, json={"model": "smollm2", **body}) as answer,
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
