"""Schemathesis against a live server: its own OpenAPI, with the promises that Headway adds.

Whatever a schema allows, and much that it forbids: no answer of 500 that stock vLLM would not give
too, no hang, and the server still works afterwards. A request that got 5xx is sent again to
``--policy stock``; where that gives no 5xx the fault is ours. The routes that no OpenAPI of vLLM's
describes, ours and ``/metrics``, have a description here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from headway.bench.server import LiveServer
from headway.engines.vllm.edge import PATHS
from headway.engines.vllm.headers import OTHERS, OWN, TOKENS_PER_S

schemathesis = pytest.importorskip("schemathesis")
pytestmark = pytest.mark.live

LOCAL = requests.Session()
LOCAL.trust_env = False  # A proxy of the environment has no business between two local processes.

LIKE_CHAT = {"max_tokens": 2, "max_completion_tokens": 2, "min_tokens": 0, "n": 1}
KEPT_SHORT: dict[str, dict[str, Any]] = {
    "/v1/responses": {"max_output_tokens": 2, "background": False, "store": False},
    "/v1/messages": {"max_tokens": 2},
}
"""By path, else as for chat: so that an answer is a matter of milliseconds."""

NUM_CASES, NUM_CASES_OF_OTHERS = 80, 20
"""For chats and completions, and for each other route, by the schema and against it; and as many as
the former that are good but for what is promised."""

ANSWER_WITHIN_S = 60.0
NUMBER = {"type": "number", "exclusiveMinimum": 0, "maximum": 1e7}
TEXT = {"type": "string"}
SLO_OBJECT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "ttft_ms": NUMBER,
        "tbt_ms": {"anyOf": [NUMBER, TEXT]},
        "jct_ms": {"anyOf": [NUMBER, {"type": "null"}]},
        "class": {"enum": ["chat", "gold"]},
        "weight": NUMBER,
    },
}
HEADERS = [
    {"name": name, "in": "header", "schema": {"anyOf": [NUMBER, TEXT]}}
    for name in (*OWN, *OTHERS, TOKENS_PER_S)
]
WHOLE = {"type": "integer", "minimum": 0, "maximum": 100}
ANSWERS = {"responses": {"200": {"description": "Data."}, "400": {"description": "A sentence."}}}


def query(*names: str) -> dict[str, Any]:
    fields = [{"name": n, "in": "query", "schema": TEXT if n == "id" else WHOLE} for n in names]
    return {"get": {"parameters": fields, **ANSWERS}}


OWN_ROUTES = {
    "openapi": "3.1.0",
    "info": {"title": "Headway", "version": "1"},
    "paths": {
        "/headway": query(),
        "/headway/state": query("after"),
        "/headway/broken": query("id", "worst"),
        "/metrics": query(),
    },
}

noise = st.none() | st.booleans() | st.floats() | st.text(max_size=12)
promises = st.dictionaries(
    st.sampled_from([*SLO_OBJECT["properties"], "ttft"]),
    st.floats(1e-3, 1e9) | st.sampled_from(["chat", "gold", "5"]) | noise,
    max_size=3,
)
headers = st.dictionaries(
    st.sampled_from([*OWN, *OTHERS, TOKENS_PER_S]),
    st.floats(1e-3, 1e9).map(str) | st.text(st.characters(max_codepoint=255), max_size=12),
    max_size=3,
)
FUZZ = settings(
    max_examples=NUM_CASES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "Hi"}]
GOOD: dict[str, dict[str, Any]] = {
    CHAT: {"messages": MESSAGES},
    "/v1/chat/completions/batch": {"messages": [MESSAGES, MESSAGES]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
    "/v1/messages": {"messages": MESSAGES},
    "/invocations": {"messages": MESSAGES},
}
bodies = st.fixed_dictionaries(
    {"path": st.sampled_from(list(GOOD)), "slo": promises, "stream": st.booleans()}
)


def short(path: str) -> dict[str, Any]:
    """Return what keeps an answer on *path* short."""
    return KEPT_SHORT.get(path, LIKE_CHAT)


class Sender:
    """Sends what was generated, counts the answers, and keeps what was answered with 5xx.

    Attributes:
        statuses: How often each status came.
        failed: By the start of the answer: the first request that got it.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.statuses = Counter[int]()
        self.failed: dict[str, requests.PreparedRequest] = {}

    def case(self, case: Any) -> None:
        """Send a case of schemathesis, kept short."""
        if isinstance(case.body, dict):
            case.body.update(short(case.operation.path))
        self.ask(**case.as_transport_kwargs(base_url=self.url))

    def ask(self, method: str, url: str, **parts: Any) -> None:
        """Send one request. An answer that does not come ends the test."""
        parts = {k: v for k, v in parts.items() if k in ("headers", "json", "data", "params")}
        try:
            request = LOCAL.prepare_request(requests.Request(method, url, **parts))
            answer = self.send(request)
        except (requests.exceptions.InvalidHeader, UnicodeError):
            return  # This client would not send it.
        self.statuses[answer.status_code] += 1
        if answer.status_code >= 500:
            self.failed.setdefault(answer.text[:120], request)

    def send(self, request: requests.PreparedRequest) -> requests.Response:
        """Send what is ready to be sent."""
        return LOCAL.send(request, timeout=ANSWER_WITHIN_S)


def described(server: LiveServer) -> dict[str, Any]:
    """Return the server's own OpenAPI of the routes that generate, promises added."""
    document: dict[str, Any] = LOCAL.get(server.url + "/openapi.json", timeout=30).json()
    listed = {path: found for path, found in document["paths"].items() if path in PATHS}
    of_chat = listed[CHAT]["post"]["requestBody"]
    for found in listed.values():
        operation = found["post"]
        operation["parameters"] = [*operation.get("parameters", []), *HEADERS]
        # A route that takes the bodies of several others names no schema.
        body = operation.setdefault("requestBody", of_chat)["content"]["application/json"]
        name = body["schema"]["$ref"].rpartition("/")[2]
        properties = document["components"]["schemas"][name]["properties"]
        properties |= {"slo": SLO_OBJECT, "model": {"enum": ["smollm2"]}}
    document["paths"] = listed
    return document


def play(document: dict[str, Any], sender: Sender, mode: Any) -> None:
    """Send cases for every operation of *document*."""
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        if not operation.body and not list(operation.iter_parameters()):
            continue  # There is one way to ask for it.
        count = NUM_CASES if operation.path in (CHAT, "/v1/completions") else NUM_CASES_OF_OTHERS
        fuzz = settings(FUZZ, max_examples=count)
        fuzz(given(operation.as_strategy(generation_mode=mode))(sender.case))()


def play_promises(sender: Sender) -> None:
    """Send bodies that are good but for what they promise."""

    @FUZZ
    @given(bodies, headers)
    def each(drawn: dict[str, Any], header: dict[str, str]) -> None:
        path = drawn.pop("path")
        data = json.dumps({"model": "smollm2", **GOOD[path], **short(path), **drawn})
        sent = {**header, "Content-Type": "application/json"}
        sender.ask("POST", sender.url + path, data=data, headers=sent)

    each()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("fuzz")
    (path / "slo.toml").write_text("[classes.chat]\nttft_s = 60\n[classes.gold]\nttft_s = 1e-6\n")
    return path


@pytest.fixture(scope="module")
def server(folder: Path, teach: Callable[..., None]) -> Iterator[LiveServer]:
    args = ["smollm2", "--page", "--overload", "refuse", "--slo", str(folder / "slo.toml")]
    with LiveServer(args, folder / "server.log", ready_within_s=900) as running:
        teach(running.url)
        yield running


@pytest.fixture(scope="module")
def fuzzed(server: LiveServer) -> Sender:
    """Everything sent, and answered."""
    sender, mode = Sender(server.url), schemathesis.GenerationMode
    document = described(server)
    for each in (mode.POSITIVE, mode.NEGATIVE):
        play(document, sender, each)
        play(OWN_ROUTES, sender, each)
    play_promises(sender)
    for path in OWN_ROUTES["paths"]:
        sender.ask("GET", sender.url + path)
    return sender


def test_every_route_was_fuzzed(server: LiveServer) -> None:
    """All that OpenAPI lists of those on which promises count; what it does not is known."""
    assert PATHS - described(server)["paths"].keys() <= {"/inference/v1/generate"}


def test_every_kind_of_answer_was_given(fuzzed: Sender) -> None:
    """The noise was good enough to be served, refused, and called a mistake."""
    assert fuzzed.statuses.keys() >= {200, 400, 429}, fuzzed.statuses
    assert sum(fuzzed.statuses.values()) > 6 * NUM_CASES, fuzzed.statuses


def test_no_failure_is_ours(fuzzed: Sender, server: LiveServer, folder: Path) -> None:
    """What got 5xx gets it from stock vLLM too, without a line of Headway in the way."""
    if not fuzzed.failed:
        return
    args = ["smollm2", "--policy", "stock"]
    ours: list[str] = []
    with LiveServer(args, folder / "stock.log", ready_within_s=900) as stock:
        for text, request in fuzzed.failed.items():
            request.url = str(request.url).replace(server.url, stock.url)
            if fuzzed.send(request).status_code < 500:
                ours.append(f"{request.method} {request.path_url} {request.body!r}: {text}")
    assert not ours


def test_it_still_answers(fuzzed: Sender, server: LiveServer) -> None:
    """Afterwards: no request is left in it, and a question gets its answer."""
    state = LOCAL.get(server.url + "/headway/state", timeout=30).json()
    assert (state["now"]["running"], state["now"]["waiting"]) == (0, 0)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    body = {"model": "smollm2", "max_tokens": 16, "temperature": 0, "messages": question}
    answer = LOCAL.post(server.url + "/v1/chat/completions", json=body, timeout=60)
    assert "Paris" in answer.text
