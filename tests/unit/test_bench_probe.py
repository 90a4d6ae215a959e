"""What is said of a server that gives no answer, or the wrong one, before anything is measured."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from wire import (
    ANSWER,
    MODELS,
    Exchange,
    load_of,
    refusal_of,
)

from headway.bench.access import access_of
from headway.bench.probe import ask_server
from headway.errors import UserError


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:9", "is it running"),
        ("http://no.such.host.invalid", "is not known"),
        ("http://[::bad", "is no URL"),
        ("http://127.0.0.1:99999", "is no URL"),
    ],
)
def test_urls_that_lead_nowhere(url: str, sentence: str) -> None:
    """A refused connection, an unknown name and a slip of the pen are three things."""
    with pytest.raises(UserError, match=sentence):
        asyncio.run(ask_server(url))


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, {"error": "Unauthorized"}, "HTTP 401 (Unauthorized): it wants a key; give --api-key"),
        (403, {}, "it wants a key"),
        (404, {}, "--url must be the base"),
        (500, {"error": {"message": "out\nof memory"}}, "HTTP 500: out of memory."),
        (503, {"detail": "loading"}, "HTTP 503: loading."),
        (200, [1], "did not answer like an OpenAI server"),
        (200, {"data": [None]}, "did not answer like an OpenAI server"),
    ],
)
def test_a_server_that_is_there_but_not_ours(status: int, body: Any, sentence: str) -> None:
    """Each status has its own advice."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(status, body)

    assert sentence in refusal_of(answer)


def test_a_key_that_is_wrong_is_not_asked_for_again() -> None:
    """Who gave one is told so; the key itself is not repeated."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(401, {"error": "Unauthorized"})

    sentence = refusal_of(answer, access_of("http://x", api_key="sesame"))
    assert "the key given is not accepted" in sentence
    assert "sesame" not in sentence


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_loses_requests_is_named(status: int) -> None:
    """GET follows it, so the probe knows; POST would arrive without its body."""

    async def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/new"):
            await exchange.answer(200, MODELS)
        else:
            await exchange.answer(status, {}, f"Location: /new{exchange.path}")

    assert "/new; give that as --url" in refusal_of(answer)
    (record,) = load_of(answer).records
    assert (record.outcome, record.num_output_tokens) == ("failed", 0)
    assert record.detail.startswith(f"HTTP {status}: redirected to ")


def test_a_redirect_that_keeps_requests_is_followed() -> None:
    """307 and 308 are how some balancers share out their load."""

    async def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/new"):
            await exchange.stream(*ANSWER)
        else:
            await exchange.answer(307, {}, f"Location: /new{exchange.path}")

    assert load_of(answer, num_requests=3).records[2].finished


def test_a_redirect_in_a_circle_ends() -> None:
    """With a reason."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(307, {}, f"Location: {exchange.path}")

    assert load_of(answer).records[0].detail.startswith("redirected ")
    assert "redirects in a circle" in refusal_of(answer)
