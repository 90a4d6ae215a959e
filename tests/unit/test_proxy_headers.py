"""What proxies say of a request: the forms they write, what is believed, and what is nonsense."""

from __future__ import annotations

from typing import Any

import pytest
from asgi import told_engine
from hypothesis import given
from hypothesis import strategies as st

from headway.config import Settings
from headway.engines.vllm.clock import OLDEST_S
from headway.engines.vllm.edge import SLO_FILE_VARIABLE
from headway.engines.vllm.proxy_headers import (
    ATTEMPT_COUNT,
    REQUEST_START,
    SENSELESS_S,
    SKEW_S,
    Forwarding,
    ProxyHeaders,
    last_try_of,
    start_in,
)
from headway.errors import UserError
from headway.slo import LAST_TRY_IN_STAMP, STAMP, START_IN_STAMP, Slo, SloBook

NOW_S = 1_700_000_000.0
BOTH = {"request_start": True, "retries_elsewhere": 1}
ON_TRY_2 = [(REQUEST_START, b"t=1699999998.5"), (ATTEMPT_COUNT, b"2")]


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)


# -- when a request came to a proxy --------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "before_s"),
    [
        (b"t=1699999998.123", 1.877),  # nginx: t=${msec}
        (b"1699999998.123", 1.877),
        (b"t=1699999998", 2.0),
        (b"t=1699999998123", 1.877),  # Envoy, HAProxy: %Ts%ms
        (b"1699999998123", 1.877),  # Heroku
        (b"t=1699999998123456", 1.876544),  # Apache: %t
        (b"t=1699999998123.456", 1.876544),
        (b" t=1699999998.123\t", 1.877),
        (b"t=1699999997.5, t=1699999999", 2.5),
        (b"(null), t=1699999999", 1.0),
        (b"t=1700000000.7", 0.0),
        (b"t=1699999000", OLDEST_S),
    ],
)
def test_every_form_that_proxies_write(value: bytes, before_s: float) -> None:
    """Seconds, milliseconds and microseconds; of several the first proxy's, a minute at most."""
    assert start_in(value, NOW_S) == pytest.approx(NOW_S - before_s, abs=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"t=",
        b"now",
        b"0",
        b"t=2.0",
        b"t=-1699999998",
        b"t=+1699999998",
        b"t=1_699_999_998",
        b"t=1.699999998e9",
        b"t=0x6553f0fe",
        b"T=1699999998",
        b"t=1699999998s",
        "t=१६९९९९९९९८".encode(),
        b"t=16999999981",  # Eleven digits are no instant in any unit.
        b"t=1699999998123456789",
        b"t=%d" % (NOW_S + SKEW_S + 1),
        b"t=%d" % (NOW_S - SENSELESS_S - 1),
        b"t=" + b"9" * 60_000,
        b"Mon, 20 Nov 2026 10:00:00 GMT",
    ],
)
def test_nonsense_is_ignored(value: bytes) -> None:
    """No instant, or none of the last hour."""
    assert start_in(value, NOW_S) is None


@given(st.binary(max_size=40) | st.from_regex(r"(t=)?[0-9]{0,20}(\.[0-9]*)?,?").map(str.encode))
def test_whatever_comes_is_a_sane_instant_or_none(value: bytes) -> None:
    """Bytes and near misses: never an exception, never the future, never over a minute."""
    found = start_in(value, NOW_S)
    assert found is None or NOW_S - OLDEST_S <= found <= NOW_S


# -- which try it is -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("retries", "counts", "expected"),
    [
        (1, [b"1"], 0.0),
        (1, [b"2"], 1.0),
        (1, [b" 7 "], 1.0),
        (4, [b"4"], 0.0),
        (4, [b"5"], 1.0),
        (1, [], 1 / 2),
        (4, [], 1 / 5),
        (1, [b"0"], 1 / 2),
        (1, [b"-1"], 1 / 2),
        (1, [b"1, 2"], 1 / 2),
        (1, [b"1", b"2"], 1 / 2),
        (1, ["२".encode()], 1 / 2),
        (1, [b"9" * 5000], 1 / 2),
    ],
)
def test_how_likely_a_try_is_the_last(retries: int, counts: list[bytes], expected: float) -> None:
    """By Envoy's count, or by the number of servers that may be asked."""
    assert last_try_of(counts, retries) == expected


@given(st.lists(st.binary(max_size=12), max_size=3), st.integers(1, 100))
def test_whatever_comes_is_a_share(counts: list[bytes], retries: int) -> None:
    """Never an exception."""
    assert 0.0 <= last_try_of(counts, retries) <= 1.0


# -- at the edge ---------------------------------------------------------------------------------


async def test_the_headers_travel_beside_the_promise() -> None:
    """The promise is what it was, and both processes agree on what was found."""
    told = await told_engine(BOTH, ON_TRY_2, {"slo_ttft_ms": 250}, now_s=NOW_S)
    assert SloBook.empty().resolve(told) == Slo(0.25, class_name="custom")
    assert told[STAMP][START_IN_STAMP] == NOW_S - 1.5
    heard = ProxyHeaders.believed_by(BOTH).told_in(told, NOW_S + 0.25)
    assert heard == Forwarding(1.75, "used", 1.0)


async def test_without_a_promise_the_start_is_told_too() -> None:
    """It came when it came, whatever it asks for."""
    told = await told_engine(BOTH, ON_TRY_2, {"a": 1}, now_s=NOW_S)
    assert told["a"] == 1
    assert not SloBook.empty().resolve(told).is_promise
    assert ProxyHeaders(True, 1).told_in(told, NOW_S) == Forwarding(1.5, "used", 1.0)


@pytest.mark.parametrize("settings", [{}, {"request_start": False, "retries_elsewhere": 0}])
async def test_where_nobody_asked_for_it_nothing_is_written(settings: dict[str, Any]) -> None:
    """To the byte what the engine is told without the headers."""
    assert await told_engine(settings, ON_TRY_2, None, now_s=NOW_S) is None
    assert await told_engine(settings, ON_TRY_2, {"a": 1}, now_s=NOW_S) == {"a": 1}
    asked = {"slo_ttft_ms": 250}
    plain = await told_engine(settings, [], asked, now_s=NOW_S)
    assert await told_engine(settings, ON_TRY_2, asked, now_s=NOW_S) == plain
    assert plain == {STAMP: Slo(0.25, class_name="custom").stamp()}


async def test_without_the_headers_only_a_share_is_told() -> None:
    """A request that came past every proxy."""
    assert await told_engine({"request_start": True}, [], None, now_s=NOW_S) is None
    told = await told_engine(BOTH, [], None, now_s=NOW_S)
    assert ProxyHeaders.believed_by(BOTH).told_in(told, NOW_S) == Forwarding(last_try=0.5)


async def test_nonsense_is_served_and_known_to_be_nonsense() -> None:
    """As if the header were not there, but for the count."""
    told = await told_engine(BOTH, [(REQUEST_START, b"soon")], None, now_s=NOW_S)
    assert ProxyHeaders(True, 1).told_in(told, NOW_S) == Forwarding(0.0, "ignored", 0.5)


async def test_where_the_edge_does_not_answer_nothing_counts() -> None:
    """Neither headers nor what a client writes into the stamp itself; elsewhere that gets 400."""
    forged = {STAMP: {START_IN_STAMP: NOW_S - 50, LAST_TRY_IN_STAMP: 1.0}}
    told = await told_engine(BOTH, ON_TRY_2, forged, now_s=NOW_S, path="/v1/other")
    assert ProxyHeaders(True, 1).told_in(told, NOW_S) == Forwarding()


# -- in the scheduler's process ------------------------------------------------------------------

anything = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())


@given(anything, anything, st.booleans(), st.integers(0, 100))
def test_whatever_is_in_a_stamp(start: Any, last_try: Any, believed: bool, retries: int) -> None:
    """Without the edge a client may write one: no more than a header can say, and no exception."""
    extra_args = {STAMP: {START_IN_STAMP: start, LAST_TRY_IN_STAMP: last_try}}
    heard = ProxyHeaders(believed, retries).told_in(extra_args, NOW_S)
    assert 0.0 <= heard.age_s <= (OLDEST_S if believed else 0.0)
    assert 0.0 <= heard.last_try <= 1.0
    assert (heard.start is not None) == believed
    assert retries or heard.last_try == 1.0


@pytest.mark.parametrize("extra_args", [None, {}, {"a": 1}, {STAMP: None}, {STAMP: [1]}])
def test_without_a_stamp(extra_args: Any) -> None:
    """A request that came as ever."""
    assert ProxyHeaders(True, 3).told_in(extra_args, NOW_S) == Forwarding()


# -- the settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [-1, 101, 1.5, "2", True, None])
def test_how_many_others_a_proxy_asks(count: object) -> None:
    """One sentence that names the setting and what it may be."""
    with pytest.raises(UserError, match=r'"retries_elsewhere" must be .* from 0 to 100, not'):
        Settings.parse({"retries_elsewhere": count})
    assert Settings.parse({"retries_elsewhere": 100}).retries_elsewhere == 100


@pytest.mark.parametrize("value", [1, "yes", None])
def test_whether_a_start_is_believed(value: object) -> None:
    """Yes or no."""
    with pytest.raises(UserError, match='"request_start" must be true or false, not'):
        Settings.parse({"request_start": value})
    assert Settings.parse({"request_start": True}).request_start
