"""Workload files are read or refused in one sentence; made-up arrivals are what they claim."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.slo import Slo, SloBook
from headway.slo_rules import SPANS
from headway.workloads import arrivals, readers, realtext
from headway.workloads.schema import WorkloadRequest, fields_of, slo_of, write_jsonl

GOOD = {"id": "r1", "arrived_at_s": 0.5, "num_prompt_tokens": 374, "num_output_tokens": 44}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_row_of_the_design_is_read(tmp_path: Path) -> None:
    """The format's example is understood, nulls included."""
    row = {
        **GOOD, "slo_class": "chat", "ttft_slo_s": 1.0, "tbt_slo_s": 0.1, "jct_slo_s": None,
        "weight": 1.0, "prefix_id": None, "prefix_tokens": 0,
    }  # fmt: skip
    (request,) = readers.load(write(tmp_path / "w.jsonl", row))
    assert request.num_prompt_tokens == 374
    assert slo_of(request, SloBook.builtin()) == Slo(1.0, 0.1, None, 1.0, "chat")


def test_a_workload_survives_a_round_trip(tmp_path: Path) -> None:
    """What is written is read back equal, prompts and all."""
    requests = realtext.demo_workload(20, 3)
    write_jsonl(tmp_path / "w.jsonl", requests)
    assert readers.load(tmp_path / "w.jsonl") == requests


spans = st.none() | st.floats(1e-6, 1e6)


@given(st.tuples(spans, spans, spans, spans), spans | st.just(math.inf))
def test_a_promise_of_its_own_goes_all_the_way(
    promised_s: tuple[float | None, ...], pause_s: float | None
) -> None:
    """Into a workload's line and out, and to a server and back: every field, endless pauses too."""
    ttft_s, tbt_s, tpot_s, jct_s = promised_s
    if pause_s is not None and tbt_s is not None:
        pause_s = max(pause_s, tbt_s)
    asked = WorkloadRequest(
        "a", 0.0, 4, 5, None, ttft_s, tbt_s, jct_s, tpot_slo_s=tpot_s, pause_slo_s=pause_s
    )
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(Path(folder, "w.jsonl"), [asked])
        assert "Infinity" not in Path(folder, "w.jsonl").read_text()
        assert readers.load(Path(folder, "w.jsonl")) == [asked]
    slo = slo_of(asked, SloBook.empty())
    assert (slo.ttft_s, slo.tbt_s, slo.tpot_s, slo.jct_s) == promised_s
    assert slo.pause_s == pause_s
    if all(s is None or s <= 600_000 for s in (*promised_s, slo.pause_s or 0.0) if s != math.inf):
        sent = json.loads(json.dumps(fields_of(slo), allow_nan=False))
        heard = SloBook.empty().resolve(sent)
        for name in SPANS:
            assert getattr(heard, name) == pytest.approx(getattr(slo, name)), name


@pytest.mark.parametrize(
    "bad", [{"pause_slo_s": 0}, {"pause_slo_s": "-inf"}, {"tpot_slo_s": "inf"}, {"tpot_slo_s": -1}]
)
def test_a_bad_promise_of_its_own_is_named(tmp_path: Path, bad: dict[str, object]) -> None:
    """By its column; and a pause shorter than the gap of the class by the request's name."""
    with pytest.raises(UserError, match=next(iter(bad))):
        readers.load(write(tmp_path / "w.jsonl", {**GOOD, **bad}))
    (request,) = readers.load(write(tmp_path / "w.jsonl", {**GOOD, "pause_slo_s": 0.05}))
    with pytest.raises(UserError, match=r"request 'r1' is 50 ms, which is shorter.*100 ms"):
        slo_of(request, SloBook.builtin())


def test_a_chain_survives_a_round_trip(tmp_path: Path) -> None:
    """Numbers stay numbers; a request without a chain has nothing of it in its line."""
    made = [
        WorkloadRequest("a", 0.0, 40, 5, hash_ids=(1, "x", -3), hash_tokens=16),
        WorkloadRequest("b", 0.0, 40, 5),
    ]
    path = tmp_path / "w.jsonl"
    write_jsonl(path, made)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert (first["hash_ids"], first["hash_tokens"]) == ([1, "x", -3], 16)
    assert not {"hash_ids", "hash_tokens"} & set(second)
    assert readers.load(path) == made


def test_a_size_of_no_hashes_says_nothing(tmp_path: Path) -> None:
    """So it is not kept, and what is read is what would be written."""
    (request,) = readers.load(write(tmp_path / "w.jsonl", {**GOOD, "hash_tokens": 16}))
    assert request == WorkloadRequest(**GOOD)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_prompt_tokens": None}, "'num_prompt_tokens' is missing"),
        ({"arrived_at_s": -1}, "at least 0"),
        ({"arrived_at_s": float("nan")}, "arrived_at_s must be a number"),
        ({"arrived_at_s": "soon"}, "'soon'"),
        ({"arrived_at_s": True}, "not True"),
        ({"num_output_tokens": 1.5}, "whole number"),
        ({"num_prompt_tokens": 1e30}, "whole number"),
        ({"ttft_slo_s": 0}, "greater than 0"),
        ({"colour": "red"}, "unknown column 'colour'"),
        ({"prefix_tokens": 999}, "must not exceed"),
        ({"hash_ids": 7}, "hash_ids must be a list of numbers or texts, not 7"),
        ({"hash_ids": [1, 2.5]}, "hash_ids must be a list"),
        ({"hash_ids": [True]}, "hash_ids must be a list"),
        ({"hash_ids": [1, 2]}, "2 hash_ids of 512 tokens each are too many for a prompt of 374"),
        ({"hash_ids": [1], "hash_tokens": 0}, "hash_tokens must be a number at least 1"),
        ({"hash_ids": [1], "prefix_id": "p"}, "either hash_ids or prefix_id"),
        ({"hash_ids": [1], "prefix_tokens": 5}, "either hash_ids or prefix_id"),
        ({"slo_class": 7}, "must be text"),
        ({"arrived_at_s": 0.1, "id": "r2"}, "goes back from 0.5 to 0.1"),
        ({}, "used twice"),
    ],
)
def test_a_bad_line_gets_one_sentence_with_its_number(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    """Each mistake names file, line and what is wrong."""
    path = write(tmp_path / "w.jsonl", GOOD, {**GOOD, **change})
    with pytest.raises(UserError, match=r"w\.jsonl, line 2: ") as caught:
        readers.load(path)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [("", "is empty"), ("[1]\n", "JSON object"), ("{\n", "not valid JSON")],
)
def test_a_file_that_is_no_workload_is_refused(tmp_path: Path, content: str, sentence: str) -> None:
    """Empty files and other formats get a sentence."""
    path = tmp_path / "w.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=sentence):
        readers.load(path)


def test_a_missing_file_is_a_sentence() -> None:
    """No traceback for a wrong path."""
    with pytest.raises(UserError, match=r"Cannot read nowhere\.jsonl"):
        readers.load("nowhere.jsonl")


def test_a_class_not_in_the_book_is_refused() -> None:
    """A workload may only name classes that exist."""
    request = WorkloadRequest("r", 0.0, 1, 1, slo_class="vip")
    with pytest.raises(UserError, match="'vip'"):
        slo_of(request, SloBook.builtin())


def test_azure_rows(tmp_path: Path) -> None:
    """Times start at zero; seven-digit fractions and zone marks are read."""
    path = tmp_path / "azure.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:48+00:00,10,1\n",
        encoding="utf-8",
    )
    first, second = readers.load(path)
    assert (first.arrived_at_s, first.num_prompt_tokens, first.num_output_tokens) == (0.0, 374, 44)
    assert second.arrived_at_s == pytest.approx(1.31941)


def test_a_bad_azure_time_names_its_line(tmp_path: Path) -> None:
    """A time that is none gets a sentence."""
    path = tmp_path / "azure.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,1,1\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 2: TIMESTAMP"):
        readers.load(path)


def test_burstgpt_rows_without_an_answer_are_left_out(tmp_path: Path) -> None:
    """BurstGPT marks failures with zero response tokens."""
    path = tmp_path / "burst.csv"
    path.write_text(
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n"
        "45,ChatGPT,1087,0,1087,Conversation log\n"
        "50,GPT-4,30,7,37,API log\n",
        encoding="utf-8",
    )
    assert [r.arrived_at_s for r in readers.load(path)] == [0.0, 45.0]


def test_mooncake_rows_keep_their_chains(tmp_path: Path) -> None:
    """Milliseconds become seconds; the hashes are there in full, of 512 tokens each."""
    row = {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}
    late = {**row, "timestamp": 30535, "hash_ids": [46, 57], "input_length": 600}
    first, second = readers.load(write(tmp_path / "m.jsonl", row, late))
    assert second.arrived_at_s == pytest.approx(3.053)
    assert (first.hash_ids, second.hash_ids) == ((46, 47), (46, 57))
    assert (first.hash_tokens, second.hash_tokens) == (512, 512)


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    """The sentence tells what can be read."""
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="BurstGPT"):
        readers.load(path)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_arrivals_have_their_rate_and_cv(cv: float) -> None:
    """Realised rate within 3 % and CV within 5 % over many requests."""
    times_s = arrivals.gamma_times_s(np.random.default_rng(0), 200_000, 4.0, cv)
    gaps_s = np.diff(times_s, prepend=0.0)
    assert 1 / gaps_s.mean() == pytest.approx(4.0, rel=0.03)
    assert gaps_s.std() / gaps_s.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_arrivals_have_their_rate_and_quantiles() -> None:
    """Gaps are exponential: mean 1/rate, median ln 2 / rate."""
    times_s = arrivals.poisson_times_s(np.random.default_rng(0), 200_000, 2.0)
    gaps_s = np.diff(times_s, prepend=0.0)
    assert gaps_s.mean() == pytest.approx(0.5, rel=0.01)
    assert np.median(gaps_s) == pytest.approx(np.log(2) / 2, rel=0.02)


def test_rescaling_gives_the_mean_rate_and_keeps_the_shape() -> None:
    """Gaps keep their proportions; the mean rate is the one asked for."""
    requests = [WorkloadRequest(f"r{t}", float(t), 1, 1) for t in (2, 3, 7, 12)]
    times_s = [r.arrived_at_s for r in arrivals.rescaled(requests, 3.0)]
    assert times_s == pytest.approx([0.0, 0.1, 0.5, 1.0])


def test_requests_at_one_instant_cannot_be_rescaled() -> None:
    """The sentence says what to do instead."""
    requests = [WorkloadRequest(f"r{i}", 5.0, 1, 1) for i in range(3)]
    with pytest.raises(UserError, match="--arrivals poisson"):
        arrivals.rescaled(requests, 3.0)


@pytest.mark.parametrize("text", ["", "uniform", "gamma", "gamma:", "gamma:0", "gamma:x"])
def test_bad_arrivals_are_refused(text: str) -> None:
    """Anything but poisson, gamma:CV and trace gets a sentence."""
    with pytest.raises(UserError, match="--arrivals"):
        arrivals.Arrivals.parse(text)


def test_the_demo_workload_is_deterministic_and_has_its_shares() -> None:
    """Same seed, same requests; 70, 20 and 10 of 100; lengths within the classes' ranges."""
    requests = realtext.demo_workload(100, 7)
    assert requests == realtext.demo_workload(100, 7)
    assert requests != realtext.demo_workload(100, 8)
    by_class: dict[str, list[WorkloadRequest]] = {}
    for request in requests:
        by_class.setdefault(request.slo_class or "", []).append(request)
    assert {name: len(found) for name, found in by_class.items()} == {
        "chat": 70, "summary": 20, "batch": 10,
    }  # fmt: skip
    for name, shortest, longest in (("chat", 10, 80), ("summary", 400, 1600), ("batch", 150, 650)):
        lengths = [r.num_prompt_tokens for r in by_class[name]]
        assert shortest <= min(lengths) <= max(lengths) <= longest
    assert len({r.prompt for r in requests}) == 100


def test_the_demo_text_holds_no_path_of_this_machine() -> None:
    """The corpus is documentation, not a listing of where Python is installed."""
    assert str(Path(json.__file__).parent) not in realtext.corpus()
    assert len(realtext.corpus()) > 300_000


def test_the_demo_classes_are_in_the_shipped_slo_file() -> None:
    """Every class of the generator has its promise."""
    book = SloBook.load(realtext.SLO_FILE)
    assert {kind.name for kind in realtext.CLASSES} == set(book.classes)


def test_a_made_up_prompt_has_about_the_length_asked_for() -> None:
    """Also when it is longer than the whole corpus."""
    for num_tokens in (5, 1000, 300_000):
        text = realtext.made_up_prompt(num_tokens, 1)
        assert realtext.tokens_in(text) == pytest.approx(num_tokens, rel=0.2)
