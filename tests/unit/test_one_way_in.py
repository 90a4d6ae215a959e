"""The border of promises: whatever a client writes, however and wherever, its file decides.

A seeded client writes one promise in random encodings, places and spellings, with keys that may and
may not, and an application behind the edge reads it as vLLM does. What the scheduler then believes
is held against a slow reading of the operator's file.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange

from headway.engines.vllm.edge import OPEN_PATHS, PATHS, SLO_FILE_VARIABLE, SloEdge
from headway.engines.vllm.headers import OWN
from headway.engines.vllm.promise import BODY_FIELDS
from headway.errors import UserError
from headway.slo import STAMP, Slo, SloBook

NUM_CASES = 100_000 if os.environ.get("HEADWAY_LONG") == "1" else 16_000
WITHIN_S = 900.0
"""Thirty times what 100,000 take on an idle core: beyond it something hangs."""

LEAST_TTFT_S, MOST_WEIGHT = 0.1, 2.0
FILE = f"""
default = "chat"
[classes.chat]
ttft_s = 1.0
[classes.gold]
ttft_s = 0.05
[classes.batch]
jct_s = 120
[keys.chat-key]
class = "chat"
classes = ["chat"]
[keys.gold-key]
class = "gold"
classes = ["gold", "chat"]
[keys.batch-key]
class = "batch"
[limits]
classes = ["chat", "batch"]
ttft_s = {{min = {LEAST_TTFT_S}}}
weight = {{max = {MOST_WEIGHT}}}
"""
MODELS = """
[models.large]
class = "batch"
"""
"""With these every body is read for its model; without, the edge looks for signs of a promise."""

CLASS_TTFT_S = {"chat": 1.0, "gold": 0.05, "batch": None}
NAMED_BY = {"chat-key": {"chat"}, "gold-key": {"gold", "chat"}, "batch-key": {"chat", "batch"}}
CLASS_OF = {"chat-key": "chat", "gold-key": "gold", "batch-key": "batch"}

SERVER_KEYS = ["a-key", *NAMED_BY]
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be"]
PLACES = ["slo", "vllm_xargs", "extra_args", "header", "top"]
FIELDS = ["class", "ttft_ms", "tbt_ms", "pause_ms", "tpot_ms", "weight"]
NUMBERS = [700, 250.5, 1e3, 60_000, 50, 0.5, 3, 1, 5e-324, 0, -1, 1e400, "700", "soon", "inf"]
CLASSES = ["chat", "gold", "batch", "none", "custom", ""]
OTHER_DIGITS = [0x0660, 0x0966, 0xFF10]
Pairs = list[tuple[str, Any]]


def may_hold(key: str | None, path: str, model: str, has_models: bool) -> set[str]:
    """The classes that the file gives to one client, read from it by hand."""
    is_stranger = path in OPEN_PATHS and key not in SERVER_KEYS
    strangers = set() if is_stranger else {"chat", "batch"}
    base = CLASS_OF.get(key or "") or ("batch" if has_models and model == "large" else "chat")
    return NAMED_BY.get(key or "", strangers) | {base}


class Border:
    """The edge, an application that reads as vLLM does, and the scheduler's reading.

    Attributes:
        xargs: What the application took from the last body for the engine's call.
    """

    def __init__(self, book: SloBook) -> None:
        self.book = book
        self.told: Any = None
        self.xargs: Any = None
        self.client = SimpleNamespace(generate=self._generate)
        args = SimpleNamespace(api_key=SERVER_KEYS)
        self.state = SimpleNamespace(engine_client=self.client, args=args)
        self.edge = SloEdge(self._app)

    async def _generate(self, prompt: str, params: Any) -> AsyncGenerator[Any, None]:
        self.told = params.extra_args
        yield SimpleNamespace(outputs=[])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body = json.loads(message["body"])
        self.xargs = body.get("vllm_xargs") or body.get("sampling_params", {}).get("extra_args")
        async for _ in self.client.generate("p", SimpleNamespace(extra_args=self.xargs)):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def promised(self, path: str, headers: Any, body: bytes) -> Slo | None:
        """Return what the scheduler believes, ``None`` after a 400."""
        scope = {
            "method": "POST",
            "path": path,
            "headers": headers,
            "app": SimpleNamespace(state=self.state),
        }
        status, _, text = await exchange(self.edge, scope, body)
        assert status in (200, 400), text
        if status == 400:
            sentence = json.loads(text)["error"]["message"]
            assert STAMP not in sentence, "an internal name tells a client nothing"
            return None
        return self.book.resolve(self.told)


@pytest.fixture
def border(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Border:
    return border_of(FILE, tmp_path, monkeypatch)


def border_of(text: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Border:
    path = folder / "slo.toml"
    path.write_text(text)
    monkeypatch.setenv(SLO_FILE_VARIABLE, str(path))
    return Border(SloBook.load(path))


def spelled(rng: random.Random, name: str) -> str:
    """A name in JSON: as it is, with escapes, or with capitals."""
    kind = rng.random()
    if kind < 0.7:
        return json.dumps(name)
    if kind < 0.9:
        escaped = (f"\\u{ord(c):04x}" if rng.random() < 0.3 else c for c in name)
        return f'"{"".join(escaped)}"'
    return json.dumps("".join(rng.choice((c, c.upper())) for c in name))


def written(rng: random.Random, value: Any) -> Any:
    """A value that means the same: a number's text too, some in other digits."""
    kind = rng.random()
    if isinstance(value, str) or kind < 0.6:
        return value
    if kind < 0.9:
        return str(value)
    zero = rng.choice(OTHER_DIGITS)
    return "".join(chr(zero + int(c)) if c.isdigit() else c for c in str(value))


def text_of(rng: random.Random, value: Any) -> str:
    """JSON of nested pairs, which may name one thing twice."""
    if not isinstance(value, list):
        return json.dumps(value, ensure_ascii=rng.random() < 0.5)
    inner = (f"{spelled(rng, name)}: {text_of(rng, each)}" for name, each in value)
    return "{" + ", ".join(inner) + "}"


def rendered(
    rng: random.Random, asked: dict[str, Any], model: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """One way to ask for *asked*, fields of ``slo``: headers and a body."""
    headers: list[tuple[bytes, bytes]] = []
    at: dict[str, Pairs] = {place: [] for place in PLACES}
    named = {field: name for name, field in OWN.items()}
    for name, value in asked.items():
        place, field = rng.choice(PLACES[: rng.choice((2, 4, 5))]), BODY_FIELDS[name]
        said = written(rng, value)
        if place == "header":
            headers.append((named[field].encode(), f" {said}".encode()))
        else:
            at[place].append((name if place == "slo" else field, said))
        if place != "header" and rng.random() < 0.05:
            at[place].insert(0, (at[place][-1][0], rng.choice(NUMBERS)))  # A second saying.
    pairs: Pairs = [("messages", 'é "slo" \u0130'), *at["top"]]
    for name in ("slo", "vllm_xargs"):
        if at[name]:
            pairs.append((name, at[name]))
            if rng.random() < 0.05:
                pairs.append((name, [("class" if name == "slo" else "slo_class", "gold")]))
    pairs.append(("sampling_params", [("extra_args", at["extra_args"])]))
    rng.shuffle(pairs)
    # "model" is vLLM's own name: other spellings of it are no name of a model.
    text = f'{{"model": {json.dumps(model)}, {text_of(rng, pairs)[1:]}'
    return headers, text.encode(rng.choice(ENCODINGS))


@pytest.mark.parametrize("has_models", [False, True])
async def test_no_key_obtains_more_than_its_file_allows(
    has_models: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is written, the promise is within the file; written plainly and anyhow it is the
    same, or 400; and past the edge it is none."""
    border = border_of(FILE + MODELS * has_models, tmp_path, monkeypatch)
    rng, paths = random.Random(17), sorted(PATHS)
    seen = Counter[str]()
    async with asyncio.timeout(WITHIN_S):
        for _ in range(NUM_CASES // 2):
            path, model = rng.choice(paths), rng.choice(["small", "large"])
            key = rng.choice([None, "unknown", *SERVER_KEYS])
            known = [] if key is None else [rng.choice(shown_as(key))]
            asked: dict[str, Any] = {
                name: rng.choice(
                    CLASSES if name == "class" else NUMBERS[: rng.choice((4, len(NUMBERS)))]
                )
                for name in rng.sample(FIELDS, rng.randrange(1, 4))
            }
            plain_body = json.dumps({"model": model, "slo": asked, "sampling_params": {}}).encode()
            plain = await border.promised(path, known, plain_body)
            headers, body = rendered(rng, asked, model)
            border.xargs = None
            found = await border.promised(path, known + headers, body)
            seen["400" if found is None else "same"] += 1
            if found is not None:
                assert found == plain, (key, path, asked, headers, body)
                believed_alone(border)
            for slo in (plain, found):
                if slo is not None:
                    within_the_file(slo, may_hold(key, path, model, has_models))
    assert min(seen.values()) > NUM_CASES // 40, seen


def shown_as(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode()), (b"x-api-key", key.encode())]


def within_the_file(slo: Slo, classes: set[str]) -> None:
    """Assert that a promise is one the operator allows."""
    assert slo.class_name in classes
    if slo.ttft_s != CLASS_TTFT_S[slo.class_name]:
        assert slo.ttft_s is not None
        assert slo.ttft_s >= LEAST_TTFT_S
    assert slo.weight <= MOST_WEIGHT


def believed_alone(border: Border) -> None:
    """Assert that what the engine's call would hold without the edge is no promise."""
    try:
        assert not border.book.resolve(border.xargs).is_promise
    except UserError:
        return


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"slo": {"class": "chat"}, "slo": {"class": "gold"}}', "twice"),
        ('{"slo": {"class": "chat", "class": "gold"}}', "twice"),
        ('{"vllm_xargs": {"slo_class": "chat"}, "vllm_xargs": {}}', "twice"),
        ('{"vllm_xargs": {}, "vllm_xargs": {"slo_class": "chat"}}', "twice"),
        ('{"vllm_xargs": {"slo_class": "a", "slo_class": "chat"}}', "twice"),
        ('{"vllm_xargs": {"SLO_TTFT_MS": 700}}', "SLO_TTFT_MS"),
        ('{"SLO": {"ttft_ms": 700}}', "SLO"),
        ('{"Slo_Class": "chat"}', "Slo_Class"),
        ('{"VLLM_XARGS": {"slo_class": "chat"}}', "no effect"),
        ('{"extra_body": {"slo": {"class": "chat"}}}', "no effect"),
        ('{"sampling_params": {"slo_class": "chat"}}', "no effect"),
        ('{"sampling_params": {"vllm_xargs": {"slo_class": "chat"}}}', "no effect"),
        ('{"\\u0053LO": {"ttft_ms": 700}}', "SLO"),
        ('{"slo": {"ttft_ms": "\uff17\uff10\uff10"}}', "number"),
        ('{"slo": {"ttft_ms": 5e-324}}', "slo.ttft_ms must be greater than 0"),
        ('{"vllm_xargs": {"slo_ttft_ms": 5e-324}}', "slo_ttft_ms must be greater than 0"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_nothing_is_accepted_in_silence(
    border: Border, text: str, word: str, encoding: str
) -> None:
    """What is not what it seems is a sentence."""
    scope = {
        "method": "POST",
        "path": "/v1/completions",
        "headers": [],
        "app": SimpleNamespace(state=border.state),
    }
    status, _, answer = await exchange(border.edge, scope, text.encode(encoding))
    assert status == 400
    assert word in json.loads(answer)["error"]["message"]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("x-slo-ttft-ms", "soon"),
        ("x-slo-class", "gold"),
        ("x-slo-explain", "perhaps"),
        ("x-sgl-ttft-slo-ms", "-1"),
        ("x-llm-d-slo-ttft-ms", "5"),
    ],
)
async def test_a_mistake_in_a_header_is_told_beside_a_body_that_counts(
    border: Border, header: str, value: str
) -> None:
    """Not only where the header would have counted."""
    body = b'{"slo": {"ttft_ms": 700, "class": "chat", "explain": false}, "sampling_params": {}}'
    path = "/v1/completions"
    assert await border.promised(path, [], body) == Slo(0.7, class_name="chat")
    assert await border.promised(path, [(header.encode(), value.encode())], body) is None


@pytest.mark.parametrize("text", [
    '{"tools": {"slo_x": 1, "slo_x": 2, "SLO": 3}, "tools": {"slo": 4}, "sampling_params": {}}',
    '{"n": 1, "n": 2, "slope": 1, "vllm_xargs": {"a": 1}, "vllm_xargs": {"a": 2}}',
])  # fmt: skip
async def test_what_is_none_of_ours_passes(border: Border, text: str) -> None:
    """Other objects may hold what they like, as often as they like."""
    slo = await border.promised("/v1/completions", [], text.encode())
    assert slo == Slo(1.0, class_name="chat")


@pytest.mark.parametrize("key", [None, "unknown", "a-key", "chat-key"])
async def test_no_class_is_told_to_who_shows_no_key(border: Border, key: str | None) -> None:
    """Where vLLM asks for none; elsewhere its check of keys has come first."""
    for path in sorted(PATHS):
        scope = {
            "method": "POST",
            "path": path,
            "headers": shown_as(key)[:1] if key else [],
            "app": SimpleNamespace(state=border.state),
        }
        _, _, answer = await exchange(border.edge, scope, b'{"slo": {"class": "lead"}}')
        is_told = path not in OPEN_PATHS or key in SERVER_KEYS
        assert (b"the classes are: " in answer) == is_told, answer


async def test_a_server_without_keys_tells_everybody(border: Border) -> None:
    """There is nothing that a key would open."""
    border.state.args.api_key = None
    slo = await border.promised("/invocations", [], b'{"slo": {"class": "batch"}}')
    assert slo == Slo(jct_s=120.0, class_name="batch")
