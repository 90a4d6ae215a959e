"""Promises in headers: our names, other stacks' names, and what is a mistake."""

from __future__ import annotations

import pytest

from headway.engines.vllm.headers import (
    EXPLAIN_HEADER,
    OTHERS,
    OWN,
    TOKENS_PER_S,
    Headers,
    api_key_of,
    asked_in,
)
from headway.engines.vllm.promise import asked_of
from headway.errors import UserError
from headway.slo import REQUEST_FIELDS, Slo, SloBook

BOOK = SloBook.parse({"classes": {"chat": {"ttft_s": 1.0, "tbt_s": 0.1}}})


def raw(**headers: str) -> list[tuple[bytes, bytes]]:
    return [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]


def promise_of(book: SloBook, headers: Headers, body: object) -> Slo:
    return asked_of(book, headers, body).slo


def test_every_field_of_a_request_has_a_header() -> None:
    """What the body can say, a header can say."""
    assert set(OWN.values()) == set(REQUEST_FIELDS)
    assert set(OTHERS.values()) <= set(REQUEST_FIELDS)


@pytest.mark.parametrize("name", [*OWN, *OTHERS])
def test_a_header_is_its_field(name: str) -> None:
    """Each name stands for one field, and a mistake in it is told by the header's name."""
    field = {**OWN, **OTHERS}[name]
    value = "chat" if field == "slo_class" else "250"
    assert asked_in([(name.encode(), f" {value} ".encode())]) == [(field, value, name)]
    with pytest.raises(UserError, match=name):
        promise_of(BOOK, [(name.encode(), b"soon")], None)


def test_headers_make_a_promise() -> None:
    """Milliseconds in, seconds inside, and the class's other fields stay."""
    slo = promise_of(BOOK, raw(x_slo_class="chat", x_slo_ttft_ms="250"), None)
    assert slo == Slo(0.25, 0.1, None, 1.0, "chat")
    slo = promise_of(BOOK, raw(x_slo_jct_ms="9e3", x_slo_weight="2"), None)
    assert slo == Slo(None, None, 9.0, 2.0, "custom")


def test_tokens_a_second_are_a_mean_time_per_token() -> None:
    """SGLang's gateway asks for a rate; a rate is a mean, and its inverse one of spans."""
    slo = promise_of(BOOK, [(TOKENS_PER_S.encode(), b"20")], None)
    assert slo == Slo(tpot_s=0.05, class_name="custom")
    with pytest.raises(UserError, match="tokens a second"):
        promise_of(BOOK, [(TOKENS_PER_S.encode(), b"0")], None)


def test_our_own_header_comes_first() -> None:
    """A gateway's header does not override what the client told us by our name."""
    headers = raw(x_sgl_tps_slo="1", x_llm_d_slo_tpot_ms="300", x_slo_tpot_ms="40")
    assert promise_of(BOOK, headers, None).tpot_s == 0.04
    assert promise_of(BOOK, headers[:2], None).tpot_s == 0.3
    assert promise_of(BOOK, headers[:1], None).tpot_s == 1.0


def test_a_time_per_token_is_no_gap() -> None:
    """llm-d's TPOT is a mean: a promise of it forbids no single gap, and no pause."""
    slo = promise_of(BOOK, raw(x_llm_d_slo_tpot_ms="30"), None)
    assert slo == Slo(tpot_s=0.03, class_name="custom")
    assert slo.longest_pause_s == float("inf")


def test_a_pause_is_judged_beside_the_gap_it_ends_up_with() -> None:
    """A header that the body overrides is judged by itself, the promise that counts as a whole."""
    pause, gap = raw(x_slo_pause_ms="300"), raw(x_slo_tbt_ms="500")
    with pytest.raises(UserError, match=r"x-slo-pause-ms is 300 ms.*gap.*500 ms"):
        promise_of(BOOK, pause + gap, None)
    body = {"slo": {"pause_ms": "inf"}}
    assert promise_of(BOOK, pause + gap, body).pause_s == float("inf")
    assert promise_of(BOOK, pause, {"slo": {"tbt_ms": 300}}).longest_pause_s == 0.3


def test_a_misspelt_header_is_not_dropped_in_silence() -> None:
    """The sentence lists what would have been understood."""
    with pytest.raises(UserError) as caught:
        asked_in(raw(x_slo_tfft_ms="5"))
    for name in (*OWN, EXPLAIN_HEADER, *OTHERS, TOKENS_PER_S):
        assert name in str(caught.value)


def test_the_same_header_twice() -> None:
    """Harmless when it says the same, a mistake when it does not."""
    one, other = (b"x-slo-ttft-ms", b"100"), (b"x-slo-ttft-ms", b"200")
    assert asked_in([one, one]) == [("slo_ttft_ms", "100", "x-slo-ttft-ms")]
    with pytest.raises(UserError, match="twice"):
        asked_in([one, other])


@pytest.mark.parametrize(
    "value", ["", "-1", "0", "nan", "inf", "1_000", "0x10", "1e400", "9" * 60_000, "100, 200", "²"]
)
def test_a_header_that_is_no_sensible_number(value: str) -> None:
    """One short sentence that names the header, however long the value."""
    with pytest.raises(UserError, match="x-slo-ttft-ms") as caught:
        promise_of(BOOK, [(b"x-slo-ttft-ms", value.encode("latin-1"))], None)
    assert len(str(caught.value)) < 200


def test_other_headers_are_none_of_our_business() -> None:
    """Whatever does not begin with our prefix passes."""
    headers = raw(x_llm_d_inference_objective="gold", x_slow="1", slo_ttft_ms="1")
    assert asked_in(headers) == []


def test_the_api_key_is_the_bearer_token() -> None:
    """As vLLM reads it; Anthropic's clients send another header, which comes second."""
    assert api_key_of(raw(authorization="Bearer abc")) == b"abc"
    assert api_key_of(raw(authorization="bEARER abc d")) == b"abc d"
    assert api_key_of(raw(authorization="Basic abc")) is None
    assert api_key_of(raw(authorization="Bearer ")) is None
    assert api_key_of(raw(x_api_key="k")) == b"k"
    assert api_key_of(raw(x_api_key="k", authorization="Bearer b")) == b"b"
    assert api_key_of([]) is None
