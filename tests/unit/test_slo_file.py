"""The SLO file: keys, models, limits, and reading it again while the server runs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway import slo_file
from headway.errors import UserError
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.slo_file import LOOK_EVERY_S, WatchedBook
from headway.slo_rules import MAX_PROMISE_S

KEY = b"sk-gold-customer"
DIGEST = hashlib.sha256(KEY).hexdigest()

FILE = f"""
default = "chat"
[classes.chat]
ttft_s = 1.0
tbt_s = 0.1
[classes.gold]
ttft_s = 0.2
[classes.batch]
jct_s = 120
[classes.idle]
[keys."sha256:{DIGEST}"]
class = "gold"
classes = ["gold", "chat"]
[keys."key in clear"]
class = "batch"
[models."org/large"]
class = "batch"
[limits]
classes = ["chat", "idle"]
ttft_s = {{min = 0.2, max = 60}}
tbt_s = {{min = 0.03}}
weight = {{max = 2}}
"""

CHAT = Slo(1.0, 0.1, None, 1.0, "chat")
GOLD = Slo(0.2, class_name="gold")
BATCH = Slo(jct_s=120.0, class_name="batch")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "slo.toml"
    file.write_text(FILE)
    return file


@pytest.fixture
def book(path: Path) -> SloBook:
    return SloBook.load(path)


def test_the_class_comes_from_request_key_model_or_default_in_this_order(book: SloBook) -> None:
    """The most particular one that says anything counts."""
    assert book.promise({}) == CHAT
    assert book.promise({}, model="org/large") == BATCH
    assert book.promise({}, model="org/small") == CHAT
    assert book.promise({}, model="org/large", api_key=KEY) == GOLD
    assert book.promise({}, model="org/large", api_key=b"unknown") == BATCH
    asked = {"slo_class": "chat"}
    assert book.promise(asked, model="org/large", api_key=KEY) == CHAT
    assert book.promise({"slo_tbt_ms": 50}, api_key=KEY) == replace(GOLD, tbt_s=0.05)


def test_a_key_in_clear_works_and_is_kept_as_a_digest(book: SloBook) -> None:
    """Nothing that prints the book prints a key."""
    assert book.promise({}, api_key=b"key in clear") == BATCH
    assert "key in clear" not in repr(book)


def test_a_client_names_only_classes_it_may(book: SloBook) -> None:
    """``[limits]`` for all, the key's own list for its holder; the class one has is always his."""
    assert book.promise({"slo_class": "idle"}) == Slo(class_name="idle")
    assert book.promise({"slo_class": "gold"}, api_key=KEY) == GOLD
    assert book.promise({"slo_class": "batch"}, api_key=b"key in clear") == BATCH
    for asked, key in (("gold", None), ("gold", b"key in clear"), ("idle", KEY), ("batch", KEY)):
        with pytest.raises(UserError, match="not allowed") as caught:
            book.promise({"slo_class": asked}, api_key=key)
        assert "chat" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "good", "bad", "words"),
    [
        ("slo_ttft_ms", (200, "60000"), (199.9, 60001), "between 200 and 60000 milliseconds"),
        ("slo_tbt_ms", (30, 9999999), (29,), "at least 30 milliseconds"),
        ("slo_weight", (2, 0.1), (2.1,), "at most 2 units"),
        ("slo_jct_ms", (1, 1e6), (), ""),
    ],
)
def test_limits_bound_what_a_client_asks_for(
    book: SloBook, field: str, good: tuple[Any, ...], bad: tuple[Any, ...], words: str
) -> None:
    """Both ends are allowed; beyond them the sentence says what is."""
    for value in good:
        book.promise({field: value})
    for value in bad:
        with pytest.raises(UserError, match=words):
            book.promise({field: value})


def test_limits_hold_without_the_http_edge_too(book: SloBook) -> None:
    """The scheduler reads the same file, and a request may reach it another way."""
    with pytest.raises(UserError, match="between 200"):
        replace(book, keys={}).resolve({"slo_ttft_ms": 5})


@pytest.mark.parametrize("name", ["slo_class", "slo_ttft_ms", "slo_explain", "SLO_CLASS", "slo"])
def test_where_there_are_keys_the_scheduler_believes_the_edge_alone(
    book: SloBook, name: str
) -> None:
    """It sees no keys: what the edge has not judged holds no promise, nor the default class."""
    assert book.resolve({STAMP: GOLD.stamp()}) == GOLD
    assert book.resolve({"top_x": 1}) == book.resolve(None) == NO_PROMISE
    with pytest.raises(UserError, match="middleware"):
        book.resolve({name: "chat"})


@pytest.mark.parametrize("sent", ["ключ", "schlüssel"])
def test_a_key_with_any_letters_is_known(sent: str) -> None:
    """Clients write it as UTF-8 or as ISO 8859-1, as far as it has the letters."""
    document = {
        "classes": {"chat": {"ttft_s": 1}, "gold": {"ttft_s": 0.1}},
        "keys": {sent: {"class": "chat", "classes": []}},
    }
    book = SloBook.parse(document)
    codings = ["utf-8", "latin-1"] if max(sent) < "\u0100" else ["utf-8"]
    for coding in codings:
        with pytest.raises(UserError, match="not allowed"):
            book.promise({"slo_class": "gold"}, api_key=sent.encode(coding))


def test_a_file_with_a_byte_order_mark_is_read(path: Path) -> None:
    """Some editors write one."""
    path.write_text(FILE, encoding="utf-8-sig")
    assert SloBook.load(path).promise({}) == CHAT


def test_classes_of_the_operator_are_not_limited() -> None:
    """Limits are for clients: a class may promise more than any client may ask for."""
    document = {"classes": {"vip": {"ttft_s": 0.1}}, "limits": {"ttft_s": {"min": 1}}}
    assert SloBook.parse(document).promise({"slo_class": "vip"}).ttft_s == 0.1


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[limits]\nttft_ms = {min = 1}", "ttft_ms"),
        ("[limits]\nttft_s = 5", "min, max"),
        ("[limits]\nttft_s = {min = 0}", "greater than 0"),
        ("[limits]\nttft_s = {min = 5, max = 1}", "min is greater"),
        ("[limits]\nclasses = 'a'", "list"),
        ("[limits]\nclasses = ['b']", "'b'"),
        ("[keys.'sha256:12']\nclass = 'a'", "64 hexadecimal"),
        ("[keys.'hush']\nclass = 'b'", "'b'"),
        ("[keys.'hush']\nttft_s = 1", "ttft_s"),
        ("[keys]\nhush = 'a'", "class"),
        ("[models.m]\nclass = 5", "5"),
        ("[models.m]\nclasses = ['a']", "classes"),
        ("[model.m]\nclass = 'a'", "'model'"),
    ],
)
def test_a_bad_table_is_one_sentence(tmp_path: Path, text: str, word: str) -> None:
    """It names the file and the mistake, and never a key in clear."""
    file = tmp_path / "slo.toml"
    file.write_text(f"[classes.a]\nttft_s = 1\n{text}\n")
    with pytest.raises(UserError, match=word) as caught:
        SloBook.load(file)
    assert "slo.toml" in str(caught.value)
    assert "hush" not in str(caught.value)


def rewrite(path: Path, text: str | None) -> None:
    """Replace the file as an operator should, and make sure that its time differs; or remove it."""
    if text is None:
        path.unlink()
        return
    before = path.stat().st_mtime_ns if path.exists() else 0
    new = path.with_suffix(".new")
    new.write_text(text)
    os.utime(new, ns=(before + 1, before + 1))
    new.replace(path)


async def test_a_new_file_counts_within_a_second(path: Path) -> None:
    """It is looked at once a second, whatever the load."""
    watched = WatchedBook(path, now_s=100.0)
    rewrite(path, FILE.replace("ttft_s = 1.0", "ttft_s = 3.0"))
    assert (await watched.at(100.0 + 0.9 * LOOK_EVERY_S)).promise({}).ttft_s == 1.0
    assert (await watched.at(100.0 + LOOK_EVERY_S)).promise({}).ttft_s == 3.0


async def test_looking_is_rare_and_reading_rarer(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thousand requests in a second cost one look; an unchanged file is not read again."""
    looks, loads = [], []
    stat, load = Path.stat, SloBook.load
    monkeypatch.setattr(Path, "stat", lambda p, **k: (looks.append(p), stat(p, **k))[1])
    monkeypatch.setattr(SloBook, "load", lambda p: (loads.append(p), load(p))[1])
    watched = WatchedBook(path, now_s=0.0)
    for i in range(3000):
        await watched.at(i / 1000)
    assert (len(looks), len(loads)) == (3, 1)


@pytest.mark.parametrize("text", ["= broken", "", "[classes.a]\nttft_s = -1", None])
async def test_a_bad_file_changes_nothing_and_says_so_once(
    path: Path, text: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The old promises hold until the file is right again."""
    watched = WatchedBook(path, now_s=0.0)
    rewrite(path, text)
    with caplog.at_level(logging.INFO, logger="vllm.headway"):
        for now_s in (1.0, 2.0, 3.0):
            assert (await watched.at(now_s)).promise({}) == CHAT
        assert len(caplog.records) == 1
        assert "slo.toml" in caplog.text
        rewrite(path, "[classes.new]\nttft_s = 7\n")
        assert set((await watched.at(4.0)).classes) == {"new"}
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


async def test_a_hung_disk_keeps_nobody_waiting(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The promises read before hold for every request; the next version counts when it comes."""
    watched = WatchedBook(path, now_s=0.0)
    answers, stat, num_looks = threading.Event(), Path.stat, 0

    def hung(path: Path, **how: Any) -> os.stat_result:
        nonlocal num_looks
        num_looks += 1
        answers.wait()
        return stat(path, **how)

    rewrite(path, "[classes.new]\nttft_s = 7\n")
    monkeypatch.setattr(Path, "stat", hung)
    monkeypatch.setattr(slo_file, "WAIT_S", 0.01)
    try:
        with caplog.at_level(logging.WARNING, logger="vllm.headway"):
            for i in range(1, 100):
                assert (await watched.at(float(i))).promise({}) == CHAT
    finally:
        answers.set()
    assert num_looks == 1
    assert "does not answer" in caplog.text
    at_s = 100.0
    while set((await watched.at(at_s)).classes) != {"new"}:
        at_s += 1.0
        await asyncio.sleep(0)


def test_a_bad_file_to_begin_with_is_an_error(tmp_path: Path) -> None:
    """There is nothing older to keep."""
    with pytest.raises(UserError, match="Cannot read"):
        WatchedBook(tmp_path / "none.toml", 0.0)


spans = st.none() | st.floats(min_value=1e-6, max_value=MAX_PROMISE_S)
names = st.text(min_size=1, max_size=9).filter(str.isprintable)


@given(st.tuples(spans, spans, spans, spans), st.floats(min_value=1e-3, max_value=1e6), names)
def test_the_scheduler_takes_the_edges_promise_as_it_is(
    promised_s: tuple[float | None, ...], weight: float, name: str
) -> None:
    """Even a class that the scheduler's older file does not know."""
    ttft_s, tbt_s, tpot_s, jct_s = promised_s
    pause_s = math.inf if tbt_s is None else tbt_s
    slo = Slo(ttft_s, tbt_s, jct_s, weight, name, tpot_s, pause_s)
    asked = {STAMP: slo.stamp(), "slo_class": "something else"}
    assert SloBook.builtin().resolve(asked) == slo


@pytest.mark.parametrize("name", ["gold", "custom", "none", "Fälle für später", "x" * 100])
def test_a_stamp_may_name_a_class_of_another_file(name: str) -> None:
    """The edge reads a changed file at once, the scheduler never: the name need not be known."""
    slo = Slo(ttft_s=1.0, class_name=name)
    assert SloBook.empty().resolve({STAMP: slo.stamp()}) == slo


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "a\u2028b", "\ud800", 5, None, ["gold"]])
def test_no_class_has_a_name_that_spoils_a_page(name: object) -> None:
    """A name becomes a label of metrics and a heading; in a stamp or a file it is checked."""
    with pytest.raises(UserError, match="1 to 100 printable characters"):
        SloBook.empty().resolve({STAMP: {"ttft_s": 1.0, "class_name": name}})
    if isinstance(name, str):
        with pytest.raises(UserError, match="1 to 100 printable characters"):
            SloBook.parse({"classes": {name: {"ttft_s": 1.0}}})


@pytest.mark.parametrize("stamp", [1, "x", [1.0], {"ttft_s": -1}, {"x": 1}, {"weight": "a"}])
def test_a_forged_stamp_is_a_mistake(stamp: object) -> None:
    """No client can send an object there, and nothing else is believed."""
    with pytest.raises(UserError, match=STAMP):
        SloBook.empty().resolve({STAMP: stamp})
    with pytest.raises(UserError, match="not an SLO field"):
        SloBook.empty().promise({STAMP: NO_PROMISE.stamp()})
