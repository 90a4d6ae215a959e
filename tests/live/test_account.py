"""Lateness in the answer of a real server, through vLLM's own endpoints and OpenAI's SDK.

The promise is one that cannot be kept: a microsecond to the first token, on a server that serves
it all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway.bench.server import LiveServer

openai = pytest.importorskip("openai")
pytestmark = pytest.mark.live

SHORT = {"model": "smollm2", "max_tokens": 8, "temperature": 0}
MESSAGES = [{"role": "user", "content": "Count to twenty."}]
LATE = {"extra_body": {"slo": {"ttft_ms": 0.001, "explain": True}}}
IN_TIME = {"extra_headers": {"X-Slo-Explain": "1", "X-Slo-Ttft-Ms": "600000"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that keeps account of lateness and refuses nobody."""
    folder: Path = tmp_path_factory.mktemp("account")
    with LiveServer(["smollm2", "--page"], folder / "log", ready_within_s=900) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: LiveServer) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def late_by(told: Any, allowed_ms: float) -> None:
    """Assert that an account is of a request whose first token was late, and of nothing else."""
    assert told["kept"] is False
    assert told["ttft_ms"] > allowed_ms
    assert told["jct_ms"] >= told["ttft_ms"]
    assert told["late_ms"] == pytest.approx(told["ttft_ms"] - allowed_ms, abs=0.01)
    assert sum(told["by_cause_ms"].values()) == pytest.approx(told["late_ms"], abs=1e-6)


def usage_of(chunks: list[Any]) -> Any:
    """Return the usage of a stream: its last chunk's, and no other's."""
    *others, last = chunks
    assert last.choices == []
    assert last.id == others[0].id
    assert all(chunk.usage is None for chunk in others)
    return last.usage


@pytest.mark.parametrize("n", [1, 3])
def test_whole_answers(client: Any, n: int) -> None:
    """Chat and completions; of several choices the worst."""
    ask = {**SHORT, "temperature": 1.0, "n": n}
    chat = client.chat.completions.create(**ask, messages=MESSAGES, **LATE)
    text = client.completions.create(**ask, prompt="Count: 1, 2,", **LATE)
    for answer in (chat, text):
        late_by(answer.usage.headway, 0.001)
        assert answer.usage.headway["offered"] == n
        assert answer.usage.completion_tokens > 0
        assert all(choice.stop_reason is None for choice in answer.choices)
        assert all(choice.finish_reason in ("length", "stop") for choice in answer.choices)


def test_streams(client: Any) -> None:
    """In a chunk of its own, or in vLLM's chunk of usage where the client asked for that."""
    with_usage = {"stream": True, "stream_options": {"include_usage": True}}
    for create, question in (
        (client.chat.completions.create, {"messages": MESSAGES}),
        (client.completions.create, {"prompt": "Count: 1, 2,"}),
    ):
        usage = usage_of(list(create(**SHORT, **question, **LATE, stream=True)))
        late_by(usage.headway, 0.001)
        usage = usage_of(list(create(**SHORT, **question, **LATE, **with_usage)))
        late_by(usage.headway, 0.001)
        assert usage.completion_tokens > 0


def test_a_kept_promise_and_none(client: Any) -> None:
    """Nothing was late; without a promise nothing was kept either."""
    answer = client.chat.completions.create(**SHORT, messages=MESSAGES, **IN_TIME)
    told = answer.usage.headway
    assert (told["kept"], told["late_ms"], told["by_cause_ms"]) == (True, 0, {})
    plain = {"extra_headers": {"X-Slo-Explain": "true"}}
    told = client.completions.create(**SHORT, prompt="Count: 1, 2,", **plain).usage.headway
    assert told["kept"] is None
    assert told["ttft_ms"] > 0
    answer = client.chat.completions.create(**SHORT, messages=MESSAGES)
    assert "headway" not in answer.usage.model_extra


def test_stop_strings(client: Any) -> None:
    """vLLM finds them outside of the scheduler: no account, and the answer's own stop reason."""
    answer = client.completions.create(
        **SHORT, prompt="1, 2, 3, 4, 5, 6,", stop=[","], extra_body={"slo": {"explain": True}}
    )
    assert answer.choices[0].stop_reason == ","
    assert answer.usage.headway is None


def test_other_endpoints_say_where_it_works(client: Any) -> None:
    """400 and a sentence."""
    with pytest.raises(openai.BadRequestError, match="/v1/completions"):
        client.responses.create(model="smollm2", input="Hi", max_output_tokens=4, **LATE)
