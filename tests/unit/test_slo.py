"""Promises, where they come from, and what a user is told about a bad one."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.slo import NO_PROMISE, PAUSE_GAPS, REQUEST_FIELDS, Slo, SloBook
from headway.slo_rules import MAX_PROMISE_S

BOOK = SloBook.parse(
    {
        "default": "chat",
        "classes": {
            "chat": {"ttft_s": 1.0, "tbt_s": 0.1},
            "batch": {"jct_s": 120, "weight": 0.5},
            "read": {"tbt_s": 0.1, "pause_s": 2, "tpot_s": 0.05},
            "free": {"tbt_s": 0.1, "pause_s": math.inf},
        },
    }
)


def test_a_request_that_asks_for_nothing_gets_the_default() -> None:
    """The operator's default class applies, or no promise when there is none."""
    assert BOOK.resolve(None) == Slo(1.0, 0.1, None, 1.0, "chat")
    assert BOOK.resolve({"temperature": 1}) == BOOK.resolve({})
    assert SloBook.empty().resolve(None) is NO_PROMISE
    assert not NO_PROMISE.is_promise


def test_fields_of_a_request_override_its_class() -> None:
    """Milliseconds at the edge become seconds inside; what is not given is the class's."""
    slo = BOOK.resolve({"slo_class": "batch", "slo_ttft_ms": 250, "slo_weight": "3"})
    assert slo == Slo(0.25, None, 120.0, 3.0, "batch")
    assert BOOK.resolve({"slo_tbt_ms": "40"}).tbt_s == pytest.approx(0.04)


def test_a_pause_and_a_time_per_token_are_promised_like_the_rest() -> None:
    """A class's, a request's own, and the pause that a gap brings along when none is named."""
    read = BOOK.resolve({"slo_class": "read"})
    assert read == Slo(tbt_s=0.1, class_name="read", tpot_s=0.05, pause_s=2.0)
    assert BOOK.resolve({"slo_class": "read", "slo_pause_ms": "inf"}).longest_pause_s == math.inf
    assert BOOK.resolve({"slo_class": "free"}).longest_pause_s == math.inf
    assert BOOK.resolve({"slo_pause_ms": 100}).longest_pause_s == 0.1
    assert BOOK.resolve(None).longest_pause_s == 1.0
    alone = SloBook.empty().resolve({"slo_pause_ms": 700, "slo_tpot_ms": "35"})
    assert alone == Slo(class_name="custom", tpot_s=0.035, pause_s=0.7)


def test_a_promise_without_a_class_is_reported_as_custom() -> None:
    """Requests with their own numbers and no class appear under one name."""
    assert SloBook.empty().resolve({"slo_jct_ms": 5000}) == Slo(jct_s=5.0, class_name="custom")


BAD = [
    ({"slo_ttft_ms": 0}, "slo_ttft_ms"),
    ({"slo_ttft_ms": -5}, "slo_ttft_ms"),
    ({"slo_ttft_ms": "soon"}, "soon"),
    ({"slo_ttft_ms": True}, "slo_ttft_ms"),
    ({"slo_ttft_ms": None}, "slo_ttft_ms"),
    ({"slo_ttft_ms": [1.0]}, "slo_ttft_ms"),
    ({"slo_ttft_ms": {}}, "slo_ttft_ms"),
    ({"slo_tbt_ms": float("nan")}, "slo_tbt_ms"),
    ({"slo_tbt_ms": "inf"}, "slo_tbt_ms"),
    ({"slo_tpot_ms": "inf"}, "slo_tpot_ms"),
    ({"slo_jct_ms": 1e15}, "at most"),
    ({"slo_pause_ms": 1e15}, "(or inf)"),
    ({"slo_pause_ms": "nan"}, "slo_pause_ms"),
    ({"slo_pause_ms": 99}, "slo_pause_ms is 99 ms, which is shorter"),
    ({"slo_class": "read", "slo_tbt_ms": 3000}, "the longest pause of class 'read' is 2.00 s"),
    ({"slo_weight": 0}, "slo_weight"),
    ({"slo_weight": 1e9}, "slo_weight"),
    ({"slo_speed": 3}, "slo_speed"),
    ({"slo_class": "gold"}, "batch, chat, free, read"),
    ({"slo_class": 7}, "batch, chat, free, read"),
    ({"slo_class": ["chat"]}, "batch, chat, free, read"),
]


@pytest.mark.parametrize(("fields", "word"), BAD)
def test_a_bad_field_is_one_clear_sentence(fields: dict[str, object], word: str) -> None:
    """It names the field and what would be allowed, on one line."""
    with pytest.raises(UserError) as caught:
        BOOK.resolve(fields)
    sentence = str(caught.value)
    assert word in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_class_without_a_file_says_so() -> None:
    """A client that names a class to a server without classes learns why it fails."""
    with pytest.raises(UserError, match="no SLO file was given"):
        SloBook.empty().resolve({"slo_class": "chat"})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([*REQUEST_FIELDS, "slo_x", "other"]), json_values))
def test_any_field_gives_a_promise_or_a_sentence(fields: dict[str, object]) -> None:
    """Whatever a client sends, the answer is a usable promise or a user error."""
    sentence = ""
    try:
        slo = BOOK.resolve(fields)
    except UserError as error:
        slo, sentence = NO_PROMISE, str(error)
    assert len(sentence) < 300
    for span_s in (slo.ttft_s, slo.tbt_s, slo.tpot_s, slo.jct_s):
        assert span_s is None or 0 < span_s <= MAX_PROMISE_S
    assert slo.longest_pause_s == math.inf or 0 < slo.longest_pause_s <= PAUSE_GAPS * MAX_PROMISE_S
    assert slo.longest_pause_s >= (slo.tbt_s or 0.0)
    assert Slo.stamped(json.loads(json.dumps(slo.stamp(), allow_nan=False))) == slo
    assert slo.weight > 0


def test_a_file_is_read(tmp_path: Path) -> None:
    """Seconds in TOML, one table a class."""
    path = tmp_path / "slo.toml"
    path.write_text('default = "a"\n[classes.a]\nttft_s = 2\n[classes.b]\njct_s = 60.5\n')
    book = SloBook.load(path)
    assert book.resolve({}) == Slo(ttft_s=2.0, class_name="a")
    assert book.resolve({"slo_class": "b"}) == Slo(jct_s=60.5, class_name="b")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[classes.a]\nttft_s = 'x'\n", "classes.a"),
        ("[classes.a]\nttft_ms = 5\n", "ttft_ms"),
        ("[classes.a]\ntbt_s = 2\npause_s = 1\n", r"\[classes.a\] pause_s is 1.00 s"),
        ("[classes.a]\ntpot_s = inf\n", r"\[classes.a\] tpot_s"),
        ("[classes.a]\ntbt_s = 2\n[limits]\npause_s = {min = inf}\n", r"\[limits\] pause_s"),
        ("[classes]\na = 5\n", "table"),
        ("[clases.a]\nttft_s = 5\n", "clases"),
        ("default = 'b'\n[classes.a]\nttft_s = 5\n", "'b'"),
        ("default = 5\n[classes.a]\nttft_s = 5\n", "5"),
        ("", "at least one class"),
        ("classes = 3", "at least one class"),
        ("= broken", "TOML"),
    ],
)
def test_a_bad_file_names_itself_and_the_mistake(tmp_path: Path, text: str, word: str) -> None:
    """The sentence says which file and what is wrong in it."""
    path = tmp_path / "slo.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=word) as caught:
        SloBook.load(path)
    assert "slo.toml" in str(caught.value)


def test_an_unhashable_default_is_a_users_mistake_too(tmp_path: Path) -> None:
    """A list where a name belongs is refused with a sentence, not a traceback."""
    path = tmp_path / "slo.toml"
    path.write_text("default = ['a']\n[classes.a]\nttft_s = 5\n")
    with pytest.raises(UserError):
        SloBook.load(path)


def test_a_missing_or_binary_file(tmp_path: Path) -> None:
    """Both are a user's mistake with a sentence."""
    with pytest.raises(UserError, match="Cannot read"):
        SloBook.load(tmp_path / "none.toml")
    with pytest.raises(UserError, match="Cannot read"):
        SloBook.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not valid TOML"):
        SloBook.load(tmp_path / "binary.toml")


def test_the_built_in_book() -> None:
    """One class, chat: a second to the first token, a tenth between two."""
    assert SloBook.builtin().resolve(None) == Slo(1.0, 0.1, None, 1.0, "chat")
