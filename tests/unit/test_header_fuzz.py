"""Noise against the whole chain a server has: our two middlewares, vLLM's key check, Starlette.

No model; the engine behind the chain keeps what it was told. A seeded generator writes header names
and values, ``slo`` objects, damaged bodies and query strings. Whatever comes in, the answer is the
server's own 200 with a sane promise, or 400 and one sentence; never 500, never none.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.engines.vllm.edge import PATHS, SLO_FILE_VARIABLE, SloEdge
from headway.engines.vllm.headers import EXPLAIN_HEADER, OTHERS, OWN, TOKENS_PER_S
from headway.engines.vllm.observe import LiveView
from headway.engines.vllm.promise import BODY_FIELDS
from headway.slo import REQUEST_FIELDS, STAMP, Slo, SloBook
from headway.slo_rules import MAX_PROMISE_S, MAX_WEIGHT

SHARE = 1.0 if os.environ.get("HEADWAY_LONG") == "1" else 0.2
"""Of the cases that the names of these tests speak of."""

WITHIN_S = 120.0
"""Twenty times what the slowest of these tests takes in full: beyond it something hangs."""

LEAST_TTFT_S = 0.1
FILE = f"""
default = "chat"
[classes.chat]
ttft_s = 1.0
[classes.gold]
ttft_s = 0.2
[classes.batch]
jct_s = 120
[limits]
ttft_s = {{min = {LEAST_TTFT_S}}}
"""

OURS = [name.encode() for name in (*OWN, EXPLAIN_HEADER, *OTHERS, TOKENS_PER_S)]
PIECES = ["1", "9" * 50, ".", "-", "+", "e", "E308", "_", " ", "nan", "inf", "0x", "chat", "gold"]
SCALARS = (None, True, False, 0, -1, 10**400, 0.5, math.inf, math.nan, "", "50", "gold", "\ud800")


class Chain:
    """A server as vLLM builds it, around an engine that answers at once.

    Attributes:
        stamps: What the engine was told with each request it got.
    """

    def __init__(self) -> None:
        self.stamps: list[Any] = []
        self.app = Starlette()
        self.app.state.engine_client = SimpleNamespace(generate=self._generate)
        self.app.state.args = SimpleNamespace(api_key=None)
        for path in sorted(PATHS):
            self.app.add_route(path, self._serve, methods=["POST"])
        self.app.add_route("/metrics", self._metrics)
        self.app.add_middleware(SloEdge)
        self.app.add_middleware(LiveView)

    async def _generate(
        self, prompt: str, sampling_params: Any
    ) -> AsyncGenerator[SimpleNamespace, None]:
        self.stamps.append(sampling_params.extra_args)
        yield SimpleNamespace(outputs=[])

    async def _serve(self, request: Request) -> Response:
        body = await request.body()
        try:
            xargs = json.loads(body)["vllm_xargs"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            xargs = None
        # What vLLM's protocol takes there: texts, numbers and lists, under names.
        params = SimpleNamespace(extra_args=xargs if isinstance(xargs, dict) else None)
        async for _ in self.app.state.engine_client.generate("p", params):
            pass
        return JSONResponse({"choices": []})

    async def _metrics(self, request: Request) -> Response:
        return PlainTextResponse("vllm:num_requests_running 0.0\n")

    async def ask(
        self,
        method: str,
        path: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes = b"",
        query: bytes = b"",
    ) -> tuple[int, bytes]:
        """Return status and body of one exchange; an exception of the chain is the test's."""
        scope = {
            "method": method,
            "path": path,
            "query_string": query,
            "headers": [(b"host", b"localhost"), *headers],
        }
        status, _, text = await exchange(self.app, scope, body)
        return status, text

    async def judged(
        self, headers: list[tuple[bytes, bytes]], body: bytes, path: str
    ) -> Slo | None:
        """Ask, check the answer, and return the promise the engine was told, or ``None``."""
        self.stamps.clear()
        status, text = await self.ask("POST", path, headers, body)
        if status == 400:
            assert self.stamps == [], "a mistake does not reach the engine"
            error = json.loads(text)["error"]
            assert error["message"].endswith(".")
            assert 10 < len(error["message"]) < 400
            return None
        assert status == 200, (headers, body, text)
        slo = SloBook.empty().resolve(self.stamps[0])
        is_sane(slo)
        return slo


def is_sane(slo: Slo) -> None:
    """Assert that a promise is within every bound, the operator's included."""
    assert slo.class_name in ("chat", "gold", "batch")
    for span_s in (slo.ttft_s, slo.tbt_s, slo.tpot_s, slo.jct_s):
        assert span_s is None or 0 < span_s <= MAX_PROMISE_S
    assert slo.longest_pause_s >= (slo.tbt_s or 0.0)
    assert slo.ttft_s is None or slo.ttft_s >= LEAST_TTFT_S
    assert 0 < slo.weight <= MAX_WEIGHT


@pytest.fixture
async def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Chain]:
    """A server with an SLO file and the page, from its start to its end; nobody schedules."""
    path = tmp_path / "slo.toml"
    path.write_text(FILE)
    monkeypatch.setenv(SLO_FILE_VARIABLE, str(path))
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "channel"))
    chain, ends = Chain(), asyncio.Event()
    turns = iter(("lifespan.startup", "lifespan.shutdown"))

    async def receive() -> Any:
        turn = next(turns)
        if turn == "lifespan.shutdown":
            await ends.wait()
        return {"type": turn}

    async def send(message: Any) -> None:
        assert message["type"].endswith(".complete"), message

    life = asyncio.create_task(chain.app({"type": "lifespan"}, receive, send))
    yield chain
    ends.set()
    await life


def random_name(rng: random.Random) -> bytes:
    """One of our names, most of the time; else nearly one."""
    kind = rng.random()
    if kind < 0.9:
        return rng.choice(OURS)
    if kind < 0.95:
        return b"x-slo-" + rng.choice([b"", b"ttft", b"class-ms", rng.randbytes(3).lower()])
    return rng.choice([b"x-slo", b"x-llm-d-slo-", b"authorization", b"x-api-key"])


def random_value(rng: random.Random) -> bytes:
    """Noise, or nearly a number, or a number, or a class."""
    kind = rng.random()
    if kind < 0.3:
        return rng.randbytes(rng.randrange(12))
    if kind < 0.7:
        return "".join(rng.choices(PIECES, k=rng.randrange(1, 5))).encode()
    if kind < 0.99:
        return f"{rng.lognormvariate(5, 8):.{rng.randrange(9)}f}".encode()
    return rng.randbytes(1) * 8000


async def test_a_hundred_thousand_header_values(chain: Chain) -> None:
    """One to six headers a request, on every endpoint that generates."""
    rng, paths = random.Random(6), sorted(PATHS)
    served = mistaken = num_values = 0
    async with asyncio.timeout(WITHIN_S):
        while num_values < SHARE * 100_000:
            count = rng.choice((1, 1, 2, 6))
            headers = [(random_name(rng), random_value(rng)) for _ in range(count)]
            num_values += count
            slo = await chain.judged(headers, b"{}", rng.choice(paths))
            served += slo is not None
            mistaken += slo is None
    assert served > SHARE * 4_000
    assert mistaken > SHARE * 20_000


def random_json(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value, some of them as Python alone writes them (``NaN``, lone surrogates)."""
    if depth > 2 or rng.random() < 0.7:
        return rng.choice([*SCALARS, rng.lognormvariate(5, 8), rng.randrange(10**6)])
    if rng.random() < 0.5:
        return [random_json(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice((*BODY_FIELDS, "x")): random_json(rng, depth + 1) for _ in range(3)}


def random_body(rng: random.Random) -> bytes:
    """A body with an ``slo`` object, ``vllm_xargs``, both, or misplaced fields; one in ten cut."""
    names = (*BODY_FIELDS, "ttft", "")
    body: dict[str, Any] = {"model": random_json(rng, 2), "prompt": 'a "slo" of none'}
    if rng.random() < 0.8:
        plain = {rng.choice(names): random_json(rng, 1) for _ in range(rng.randrange(4))}
        body["slo"] = plain if rng.random() < 0.9 else random_json(rng)
    if rng.random() < 0.3:
        xargs = (*REQUEST_FIELDS, STAMP, "top_x")
        body["vllm_xargs"] = {rng.choice(xargs): random_json(rng, 2) for _ in range(2)}
    if rng.random() < 0.05:
        body[rng.choice(REQUEST_FIELDS)] = random_json(rng)
    data = json.dumps(body).encode()
    if rng.random() < 0.1:
        cut = rng.randrange(len(data))
        data = data[:cut] + rng.randbytes(rng.randrange(3)) + data[cut + rng.randrange(5) :]
    return data


async def test_ten_thousand_slo_objects(chain: Chain) -> None:
    """In bodies whole and damaged, beside headers that may contradict them."""
    rng, paths = random.Random(7), sorted(PATHS)
    seen = Counter[bool]()
    async with asyncio.timeout(WITHIN_S):
        for _ in range(int(SHARE * 10_000)):
            headers = [(rng.choice(OURS), b"250")] if rng.random() < 0.3 else []
            slo = await chain.judged(headers, random_body(rng), rng.choice(paths))
            seen[slo is not None] += 1
    assert seen[True] > SHARE * 1_000
    assert seen[False] > SHARE * 5_000


async def test_what_is_well_formed_is_promised_to_the_digit(chain: Chain) -> None:
    """Amid the noise a number that is one arrives as that number, by header or body."""
    rng = random.Random(8)
    for _ in range(1_000):
        asked_ms = round(rng.uniform(100.0, 1e6), rng.randrange(6))
        if rng.random() < 0.5:
            headers, body = [(b"x-slo-ttft-ms", f"{asked_ms}".encode())], b"{}"
        else:
            headers, body = [], json.dumps({"slo": {"ttft_ms": asked_ms}}).encode()
        slo = await chain.judged(headers, body, "/v1/completions")
        assert slo is not None
        assert slo.ttft_s == pytest.approx(asked_ms / 1000, rel=1e-12)


async def test_our_own_routes_take_any_query(chain: Chain) -> None:
    """State, broken promises, page and metrics: data or a sentence, with any key and method."""
    rng = random.Random(9)
    routes = ["/headway", "/headway/state", "/headway/broken", "/headway/live.js", "/metrics"]
    names = ["after", "worst", "id", "", "x"]
    seen = Counter[int]()
    async with asyncio.timeout(WITHIN_S):
        for _ in range(int(SHARE * 5_000)):
            pairs = (
                f"{rng.choice(names)}={rng.choice(PIECES) * rng.choice((0, 1, 300))}".encode()
                for _ in range(rng.randrange(3))
            )
            query = b"&".join(pairs) + rng.randbytes(rng.randrange(3))
            headers = [(b"authorization", random_value(rng))] if rng.random() < 0.5 else []
            method = rng.choice(["GET", "GET", "HEAD", "POST", "DELETE"])
            status, text = await chain.ask(method, rng.choice(routes), headers, query=query)
            seen[status] += 1
            assert status in (200, 400, 405), (query, text)
            if status == 400:
                assert json.loads(text)["error"].endswith(".")
    assert min(seen[200], seen[400], seen[405]) > SHARE * 200, seen
