"""Two real servers behind nginx, Envoy and vllm-router, with the configurations that we ship.

The servers compute a small model with random weights, and differ in their promises: what class
``only-b`` asks for the first can never keep. They are started once, and the last test ends one.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import aiohttp
import pytest
import tiny
from proxies import (
    COUNTED_WITHIN_S,
    FILES,
    TRIES,
    Answer,
    ask,
    asked,
    behind,
    counted,
    ended,
    is_installed,
    skip_without,
    until,
)

from headway.bench.server import LiveServer

pytestmark = pytest.mark.live

CLASSES = "[classes]\nonly-b.ttft_s = {}\nnobody.ttft_s = 1e-6\ncalm.ttft_s = 60\nshort.ttft_s = 60"
GRACE_S = 10
NUM_LAYERS = 12
"""A step takes some milliseconds: with two layers HTTP would be most of the work."""

KV_TOKENS, MOST_TOKENS, LONG_TOKENS = 8192, 6144, 4000
"""Of a server's cache, of a request at most, and of an answer that takes seconds."""

FILLING_TOKENS = 2500
"""Of each of two prompts that hold most of a cache, and leave room for short calls."""

MODEL = {"num_hidden_layers": NUM_LAYERS, "max_position_embeddings": MOST_TOKENS}
TOKEN_BYTES_A_LAYER = 2 * tiny.SIZES["num_key_value_heads"] * tiny.SIZES["head_dim"] * 4

NUM_CALLS, NUM_REFUSALS = 20, 14
NUM_HANG_UPS, WITHIN_S = 3, 2.0
"""The quickest of so many must be counted within so many seconds: on two cores that five busy
processes share, everything stands still for seconds now and then."""

WEIGHED_AFTER_S = 3.0
"""Envoy waits a second before it believes reports, and weighs once a second."""

BEHIND = pytest.mark.parametrize("name", FILES)
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(scope="module")
def servers(
    tmp_path_factory: pytest.TempPathFactory, teach: Callable[..., None]
) -> Iterator[list[LiveServer]]:
    """Both servers, each on a core of its own: vLLM would put both on the first."""
    root: Path = tmp_path_factory.mktemp("replicas")
    tiny.llama(root / "model")
    cores = sorted(os.sched_getaffinity(0))
    pair = []
    for name, core, only_b_s in (("a", cores[0], 1e-6), ("b", cores[-1], 60)):
        (root / f"{name}.toml").write_text(CLASSES.format(only_b_s))
        args = [str(root / "model"), "--served-model-name", "smollm2", "--page"]
        args += ["--overload", "refuse", "--retries-elsewhere", "1", "--request-start"]
        args += ["--slo", str(root / f"{name}.toml"), "--grace", str(GRACE_S)]
        args += ["--dtype", "float32", "--enforce-eager", "--load-format", "dummy"]
        args += ["--hf-overrides", json.dumps(MODEL)]
        args += ["--kv-cache-memory-bytes", str(KV_TOKENS * NUM_LAYERS * TOKEN_BYTES_A_LAYER)]
        env = {"VLLM_CPU_OMP_THREADS_BIND": str(core)}
        pair.append(LiveServer(args, root / f"{name}.log", ready_within_s=900, env=env))
    with ExitStack() as stack:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(stack.enter_context, pair))
        for server in pair:
            teach(server.url)
        yield pair


@pytest.fixture(scope="module")
def urls(
    servers: list[LiveServer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Each proxy that is installed, in front of the same two servers."""
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(behind(name, servers, tmp_path_factory.mktemp(name)))
            for name in FILES
            if is_installed(name)
        }


@pytest.fixture
def url(name: str, request: pytest.FixtureRequest) -> str:
    """The address of one proxy; without it nothing is started."""
    skip_without(name)
    found: str = request.getfixturevalue("urls")[name]
    return found


@pytest.fixture
def pair(url: str, request: pytest.FixtureRequest) -> list[LiveServer]:
    """The servers behind it."""
    found: list[LiveServer] = request.getfixturevalue("servers")
    return found


@BEHIND
@STREAMED
async def test_what_one_server_refuses_the_other_serves(
    url: str, pair: list[LiveServer], stream: bool
) -> None:
    """Whichever is asked first, and the client sees nothing of it."""
    before = ended(pair, "only-b")
    answers = [await ask(url, "only-b", stream=stream) for _ in range(NUM_CALLS)]
    await all_served(answers, pair, before)
    assert ended(pair, "only-b")[0]["refused"] > before[0]["refused"]


@pytest.mark.parametrize("name", ["nginx", "envoy"])
async def test_many_retries_at_once(url: str, pair: list[LiveServer]) -> None:
    """As many as there are refusals: Envoy's own bound is three."""
    before = ended(pair, "only-b")
    answers = await asyncio.gather(*(ask(url, "only-b") for _ in range(NUM_CALLS)))
    await all_served(answers, pair, before)


async def all_served(
    answers: Sequence[Answer], pair: list[LiveServer], before: Sequence[Counter[str]]
) -> None:
    """Check that each of them was served whole, by the second server."""
    assert all(answer.is_whole for answer in answers), Counter(a.status for a in answers)
    expected = before[1]["finished"] + len(answers)
    await until(lambda: ended(pair, "only-b")[1]["finished"] == expected)


@BEHIND
async def test_what_nobody_can_keep_is_refused_after_all_tries(
    name: str, url: str, pair: list[LiveServer]
) -> None:
    """As many as are configured, ``Retry-After`` is the server's, and no server is put aside."""
    before = ended(pair, "nobody")
    for _ in range(NUM_REFUSALS):
        answer = await ask(url, "nobody")
        assert answer.status == 429
        assert int(answer.headers["Retry-After"]) >= 30
        assert json.loads(answer.text)["error"]["type"] == "rate_limit_exceeded"
    assert (await ask(url)).is_whole

    def tries() -> int:
        pairs = zip(ended(pair, "nobody"), before, strict=True)
        return sum((now - old)["refused"] for now, old in pairs)

    await until(lambda: tries() >= NUM_REFUSALS * TRIES[name])
    assert (await ask(url)).is_whole
    assert tries() == NUM_REFUSALS * TRIES[name]


@BEHIND
async def test_a_mistake_is_told_once(url: str) -> None:
    """The one wrong value that shows whether headers arrive; and the same in a body."""
    for more in ({"headers": {"X-Slo-Ttft-Ms": "abc"}}, {"slo": {"ttft_ms": "abc"}}):
        answer = await ask(url, **more)
        assert answer.status == 400
        assert "ttft" in json.loads(answer.text)["error"]["message"].lower()


@BEHIND
@STREAMED
async def test_a_hang_up_reaches_the_server(url: str, pair: list[LiveServer], stream: bool) -> None:
    """A stream's first token comes while the rest is computed. Who hangs up is counted soon."""

    def num() -> int:
        return sum(count["aborted"] for count in ended(pair))

    def is_running() -> bool:
        return any(counted(s, "vllm:num_requests_running", "engine")["0"] for s in pair)

    took_s = []
    for aborted in range(num(), num() + NUM_HANG_UPS):
        await until(lambda: not is_running())
        waiting = asyncio.create_task(first_bytes(url, stream))
        if stream:
            await waiting
        else:
            await until(is_running)
            waiting.cancel()
        hung_up_s = time.monotonic()
        await until(lambda seen=aborted: num() > seen)
        took_s.append(time.monotonic() - hung_up_s)
    print(f"Counted after {min(took_s):.2f} to {max(took_s):.2f} s.")
    assert min(took_s) < WITHIN_S


async def first_bytes(url: str, stream: bool) -> None:
    """Read the beginning of a long answer, and hang up."""
    async with asked(url, max_tokens=LONG_TOKENS, stream=stream) as answer:
        assert answer.status == 200
        await answer.content.readany()


@BEHIND
async def test_only_the_proxys_word_counts_for_when_a_request_came(
    name: str, url: str, pair: list[LiveServer]
) -> None:
    """nginx and Envoy overwrite what the client wrote; vllm-router passes it on."""
    ago = f"t={time.time() - 21:.3f}"
    more = {"headers": {"X-Request-Start": ago}, "slo": {"ttft_ms": 20_000}}
    assert (await ask(pair[1].url, **more)).status == 429
    before = starts(pair)
    assert (await ask(url, **more)).status == (429 if name == "vllm-router" else 200)
    await until(lambda: starts(pair) != before)
    assert set(starts(pair) - before) == {"used"}


def starts(pair: list[LiveServer]) -> Counter[str]:
    """Return what became of the header at both servers."""
    found = (counted(server, "headway_request_start_total", "result") for server in pair)
    return sum(found, Counter())


@pytest.mark.parametrize("name", ["envoy"])
async def test_envoy_prefers_the_server_with_less_pressure(
    url: str, pair: list[LiveServer]
) -> None:
    """Two prompts hold most of the first one's cache; of 200 short calls most go to the second."""

    async def fill(word: str) -> None:
        while True:
            await ask(pair[0].url, "calm", prompt=word * FILLING_TOKENS, max_tokens=500)

    busy = [asyncio.create_task(fill(word)) for word in "xy"]
    try:
        began_s = time.monotonic()
        while time.monotonic() < began_s + WEIGHED_AFTER_S:
            assert (await ask(url, max_tokens=1)).status == 200
        for _ in range(200):
            assert (await ask(url, "short", max_tokens=1)).status == 200
        await until(lambda: sum(c["finished"] for c in ended(pair, "short")) == 200)
        second = ended(pair, "short")[1]["finished"]
    finally:
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
    print(f"Of 200 calls {second} went to the server with less pressure.")  # For the docs.
    assert second >= 140


async def test_a_server_that_leaves_loses_no_request(request: pytest.FixtureRequest) -> None:
    """SIGTERM to one under load: every answer through every proxy is whole, before and after."""
    if not any(map(is_installed, FILES)):
        pytest.skip("none of nginx, envoy and vllm-router is installed")
    urls: dict[str, str] = request.getfixturevalue("urls")
    leaving: LiveServer = request.getfixturevalue("servers")[0]
    answers: dict[str, list[Answer]] = {name: [] for name in urls}
    is_over = False

    async def client(name: str, stream: bool) -> None:
        while not is_over:
            try:
                answer = await ask(urls[name], "calm", max_tokens=30, stream=stream)
            except aiohttp.ClientError as error:
                answer = Answer(0, {}, repr(error))
            answers[name].append(answer)

    async def ten_more() -> None:
        before = {name: len(found) for name, found in answers.items()}
        await until(lambda: all(len(found) > before[n] + 10 for n, found in answers.items()))

    clients = [asyncio.create_task(client(n, s)) for n in urls for s in (False, True, True)]
    await ten_more()
    process = leaving._process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert await asyncio.to_thread(process.wait, COUNTED_WITHIN_S) == 0
    await ten_more()
    is_over = True
    await asyncio.gather(*clients)
    print({name: len(found) for name, found in answers.items()})
    assert re.search("answers that run: [1-9]", leaving.log_path.read_text()) is not None
    for name, found in answers.items():
        broken = [answer for answer in found if not answer.is_whole]
        assert not broken, (name, len(found), broken[:3])
