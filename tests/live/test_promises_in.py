"""Promises by body, header, key and model through real clients, and what each of them is told.

One server that refuses what it cannot keep. That a promise arrived is seen by one that cannot
be kept: a microsecond to the first token is 429 at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.bench.server import LiveServer
from headway.engines.vllm.headers import OTHERS, OWN, TOKENS_PER_S

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.live

KEY, HASTY_KEY = "a-key", "a-key-of-the-hasty"
HASTY = hashlib.sha256(HASTY_KEY.encode()).hexdigest()
FILE = f"""
[classes.calm]
ttft_s = 60
[classes.hasty]
ttft_s = 1e-6
[keys."sha256:{HASTY}"]
class = "hasty"
[models.hasty-model]
class = "hasty"
[limits]
tbt_s = {{min = 0.001}}
"""

STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
SHORT = {"max_tokens": 4, "temperature": 0}
MESSAGES = [{"role": "user", "content": "Hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES, **SHORT},
    "/v1/completions": {"prompt": "Hello", **SHORT},
    "/v1/responses": {"input": "Hello", "max_output_tokens": 4},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 4},
    "/invocations": {"messages": MESSAGES, **SHORT},
    "/inference/v1/generate": {"token_ids": [1, 2, 3], "sampling_params": SHORT},
}
IMPOSSIBLE = {"ttft_ms": 0.001}


@pytest.fixture(scope="module")
def slo_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("promises") / "slo.toml"
    path.write_text(FILE)
    return path


@pytest.fixture(scope="module")
def server(slo_file: Path, teach: Callable[..., None]) -> Iterator[LiveServer]:
    args = ["smollm2", "--overload", "refuse", "--slo", str(slo_file)]
    args += ["--served-model-name", "smollm2", "hasty-model", "--api-key", KEY, HASTY_KEY]
    args += ["--enable-scale-out"]  # For /inference/v1/generate.
    args += ["--page", "--request-start", "--retries-elsewhere", "1"]
    with LiveServer(args, slo_file.with_name("log"), ready_within_s=900) as running:
        teach(running.url, KEY)
        yield running


async def post(
    server: LiveServer,
    path: str,
    body: dict[str, Any],
    headers: dict[str, str] | None = None,
    key: str = KEY,
) -> tuple[int, dict[str, str], str]:
    """Return status, headers and text of one request."""
    sent = {"Authorization": f"Bearer {key}", **(headers or {})}
    timeout = aiohttp.ClientTimeout(total=300)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(server.url + path, json={"model": "smollm2", **body}, headers=sent) as answer,
    ):
        return answer.status, dict(answer.headers), await answer.text()


def client_of(server: LiveServer, key: str = KEY, **options: Any) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, **options)


@STREAMED
@pytest.mark.parametrize("path", BODIES)
async def test_a_promise_that_can_be_kept_is_served(
    server: LiveServer, path: str, stream: bool
) -> None:
    """On every endpoint, by body or header, and the answer is the endpoint's own."""
    for extra, headers in (
        ({"slo": {"ttft_ms": 60_000, "class": "calm"}}, {}),
        ({}, {"X-Slo-Class": "calm", "x-llm-d-slo-tpot-ms": "30000"}),
    ):
        body = {**BODIES[path], "stream": stream, **extra}
        status, answer, text = await post(server, path, body, headers)
        assert status == 200, text
        assert ("event-stream" in answer["Content-Type"]) == stream


@STREAMED
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("way", ["slo", "xargs", "header", "class", "key", "model"])
async def test_one_that_cannot_is_429_however_it_was_asked_for(
    server: LiveServer, path: str, stream: bool, way: str
) -> None:
    """Every way in reaches the scheduler; the refusal has Retry-After and the endpoint's shape."""
    body = {**BODIES[path], "stream": stream}
    body |= {
        "slo": {"slo": IMPOSSIBLE},
        "xargs": {"vllm_xargs": {"slo_ttft_ms": 0.001}},
        "model": {"model": "hasty-model"},
    }.get(way, {})
    headers = {
        "header": {"X-Slo-Ttft-Ms": "0.001"},
        "class": {"X-Slo-Class": "hasty"},
    }.get(way)
    status, answer, text = await post(
        server, path, body, headers, HASTY_KEY if way == "key" else KEY
    )
    assert status == 429, text
    assert int(answer["Retry-After"]) >= 1
    error = json.loads(text)["error"]
    expected = "rate_limit_error" if path == "/v1/messages" else "rate_limit_exceeded"
    assert error["type"] == expected
    assert "promise" in error["message"]


@STREAMED
@pytest.mark.parametrize("path", BODIES)
async def test_a_mistake_is_400(server: LiveServer, path: str, stream: bool) -> None:
    """In the body or a header, and beyond the limits."""
    for extra, headers, word in (
        ({"slo": {"ttft": 5}}, {}, "ttft_ms"),
        ({"slo": {"tbt_ms": 0.5}}, {}, "at least 1 milliseconds"),
        ({}, {"X-Slo-Tbt-Ms": "soon"}, "x-slo-tbt-ms"),
        ({}, {"X-Slo-Class": "gold"}, "calm"),
        ({}, {"X-Slo-Speed": "5"}, "x-slo-ttft-ms"),
    ):
        body = {**BODIES[path], "stream": stream, **extra}
        status, _, text = await post(server, path, body, headers)
        assert status == 400, text
        assert word in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("path", sorted(set(BODIES) - {"/invocations"}))
async def test_without_a_key_nothing_is_told(server: LiveServer, path: str) -> None:
    """vLLM's 401 comes before anything of ours, whatever is asked for; one path needs no key."""
    body = {**BODIES[path], "slo": {"class": "gold"}}
    status, _, text = await post(server, path, body, {"X-Slo-Class": "gold"}, key="wrong")
    assert status == 401
    assert "calm" not in text


async def test_where_no_key_is_asked_for_no_class_is_told(server: LiveServer) -> None:
    """Nor may one be named: its holder may have left out a key that restricts it."""
    for name in ("gold", "calm"):
        body = {**BODIES["/invocations"], "slo": {"class": name}}
        status, _, text = await post(server, "/invocations", body, key="wrong")
        assert status == 400
        assert "hasty" not in text


def test_openais_sdk(server: LiveServer) -> None:
    """``extra_body`` and ``extra_headers``, streamed and not, and its own error class."""
    client = client_of(server)
    ask: dict[str, Any] = {"model": "smollm2", "messages": MESSAGES, **SHORT}
    create = client.chat.completions.create
    assert create(**ask, extra_body={"slo": {"ttft_ms": 60_000}}).choices
    assert list(create(**ask, stream=True, extra_headers={"X-Slo-Class": "calm"}))
    for extra in (
        {"extra_body": {"slo": IMPOSSIBLE}},
        {"extra_headers": {"X-Slo-Ttft-Ms": "0.001"}},
        {"extra_headers": {"X-Slo-Class": "hasty"}, "stream": True},
    ):
        with pytest.raises(openai.RateLimitError) as caught:
            create(**ask, **extra)
        assert int(caught.value.response.headers["retry-after"]) >= 1
    with pytest.raises(openai.BadRequestError, match="allowed are class"):
        create(**ask, extra_body={"slo": {"speed": 1}})
    hasty = client_of(server, key=HASTY_KEY)
    with pytest.raises(openai.RateLimitError):
        hasty.responses.create(model="smollm2", input="Hello", max_output_tokens=4)
    patient = client_of(server, key=HASTY_KEY, default_headers={"X-Slo-Class": "calm"})
    assert patient.completions.create(model="smollm2", prompt="Hello", **SHORT).choices


@pytest.mark.parametrize(
    ("extra", "status"),
    [
        (["-H", "X-Slo-Ttft-Ms: 60000", "-d", '{"model": "smollm2", "prompt": "Hi"}'], 200),
        (["-H", "X-Slo-Ttft-Ms: 0.001", "-d", '{"model": "smollm2", "prompt": "Hi"}'], 429),
        (["-d", '{"model": "smollm2", "prompt": "Hi", "slo": {"ttft_ms": 60000}}'], 200),
        (["-d", '{"model": "smollm2", "prompt": "Hi", "slo": {"ttft_ms": 0.001}}'], 429),
        (["-d", '{"model": "smollm2", "prompt": "Hi", "slo": {"ttft_ms": "x"}}'], 400),
    ],
)
def test_curl(server: LiveServer, extra: list[str], status: int) -> None:
    """As the documentation writes it."""
    done = subprocess.run(
        [
            *("curl", "-s", "--noproxy", "*", "-o", "/dev/null", "-w", "%{http_code}"),
            *(f"{server.url}/v1/completions", "-H", f"Authorization: Bearer {KEY}"),
            *("-H", "Content-Type: application/json", *extra),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == str(status)


async def request_starts(server: LiveServer) -> dict[str, float]:
    """Return what became of the ``X-Request-Start`` headers so far."""
    async with aiohttp.ClientSession() as session, session.get(server.url + "/metrics") as answer:
        text = await answer.text()
    found = re.findall(
        r'^headway_request_start_total\{.*result="(\w+)"\} (.*)$', text, re.MULTILINE
    )
    return {result: float(count) for result, count in found}


async def test_time_spent_at_a_proxy_counts(server: LiveServer) -> None:
    """Two seconds of one second are over: refused at once. Nonsense is served, and counted."""
    before = await request_starts(server)
    for path in BODIES:
        for stream, per_s, form in ((False, 1, "t=%.3f"), (True, 1000, "%d")):
            body = {**BODIES[path], "stream": stream, "slo": {"ttft_ms": 1000}}
            start = form % ((time.time() - 2) * per_s)
            headers = {"X-Request-Start": start, "x-envoy-attempt-count": "2"}
            status, answer, text = await post(server, path, body, headers)
            assert status == 429, text
            assert int(answer["Retry-After"]) >= 1
    patient = {**BODIES["/v1/completions"], "slo": {"ttft_ms": 60_000}}
    nonsense = ("soon", "t=-1", "t=0", f"t={time.time() + 3600:.0f}", "9" * 400)
    for start in (f"t={time.time() - 2:.3f}", *nonsense):
        headers = {"X-Request-Start": start, "x-envoy-attempt-count": "many"}
        status, _, text = await post(server, "/v1/completions", patient, headers)
        assert status == 200, text
    used, ignored = 2 * len(BODIES) + 1, len(nonsense)
    for _ in range(100):
        now = await request_starts(server)
        if now.get("ignored", 0.0) - before.get("ignored", 0.0) == ignored:
            break
        await asyncio.sleep(0.1)
    assert now["ignored"] - before.get("ignored", 0.0) == ignored
    assert now["used"] - before.get("used", 0.0) == used


async def test_a_changed_file_counts_without_a_restart(server: LiveServer, slo_file: Path) -> None:
    """A class that was not there at the start is promised by the scheduler a second later."""
    path = "/v1/completions"
    body = {**BODIES[path], "slo": {"class": "new"}}
    assert (await post(server, path, body))[0] == 400
    fresh = slo_file.with_suffix(".new")
    fresh.write_text(FILE + "[classes.new]\nttft_s = 1e-6\n")
    fresh.replace(slo_file)
    for _ in range(100):
        status, _, text = await post(server, path, body)
        if status != 400:
            break
        await asyncio.sleep(0.1)
    assert status == 429, text


async def test_noise_in_headers_never_breaks_a_live_server(server: LiveServer) -> None:
    """Five hundred requests with random values: 200, 400 or 429, and the server goes on."""
    rng = random.Random(5)
    alphabet = [chr(i) for i in range(33, 127)]
    seen = set()
    for _ in range(500):
        name = rng.choice([*OWN, *OTHERS, TOKENS_PER_S])
        noise = "".join(rng.choices(alphabet, k=rng.randrange(1, 30)))
        value = rng.choice([noise, f"{rng.lognormvariate(8, 6):.3f}", "hasty", "9" * 200])
        body = {"prompt": "Hi", "max_tokens": 1}
        status, _, text = await post(server, "/v1/completions", body, {name: value})
        assert status in (200, 400, 429), text
        seen.add(status)
    assert seen == {200, 400, 429}
