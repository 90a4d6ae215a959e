"""Traces of every format are read right, and broken ones get one sentence."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import pytest

from headway.errors import UserError
from headway.workloads import readers, text_files
from headway.workloads.prefixes import found_tokens
from headway.workloads.public import traces
from headway.workloads.reading import ReadOptions
from headway.workloads.schema import WorkloadRequest

TRACES = traces()
needs_traces = pytest.mark.skipif(
    not TRACES.is_dir(), reason="needs the public traces: HEADWAY_TRACES"
)

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
LENGTHS = "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
ROW = {"timestamp": 5, "input_length": 40, "output_length": 7, "hash_ids": [1, 2, 3]}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return write(path, "".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("azure", AZURE + "2023-11-16 18:00:00,1\n", "line 2: the column 'GeneratedTokens'"),
        ("azure", AZURE + "2023-11-16 18:00:00,0,5\n", "line 2: ContextTokens must be"),
        ("azure", AZURE + "2023-11-16 18:00:00,-3,5\n", "line 2: ContextTokens must be"),
        ("azure", AZURE + "2023-11-16 18:00:00,nan,5\n", "line 2: ContextTokens must be"),
        ("azure", AZURE + "2023-11-16 18:00:00,1e999,5\n", "line 2: ContextTokens must be"),
        (
            "azure",
            AZURE + "2023-11-16 18:00:09,1,5\n2023-11-16 18:00:08,1,5\n",
            "line 3: TIMESTAMP goes back",
        ),
        ("azure", AZURE, "holds no requests"),
        ("azure", AZURE + f'"{"x" * 200_000}', "not valid CSV"),
        ("burst", BURST + "-4,GPT-4,1,1,2,API log\n", "line 2: Timestamp must be"),
        ("burst", BURST + "4,GPT-4,,1,2,API log\n", "line 2: Request tokens must be"),
        ("burst", BURST + "4,GPT-4,7,0,7,API log\n", "holds no requests"),
        ("lengths", LENGTHS + "10,0,10,1\n", "(1 row with 0 output tokens skipped)"),
        ("lengths", LENGTHS + "10\n", "line 2: the column 'num_decode_tokens' is missing"),
        ("lengths", LENGTHS + "10,2.5,12,1\n", "line 2: num_decode_tokens must be a whole"),
        ("lengths", LENGTHS + "10,2,12,1,7\n", "line 2: 5 fields under a header of 4"),
        ("lengths", LENGTHS.strip() + ",\n10,2,12,1,7\n", "line 2: 5 fields under a header of 4"),
        ("empty", "", "is empty"),
        ("blank", "\n \n", "is empty"),
        ("prose", "once upon a time\n", "known are"),
    ],
)  # fmt: skip
def test_a_broken_csv_gets_one_sentence(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    """What is wrong, and in which line, where there is one."""
    with pytest.raises(UserError) as caught:
        readers.load(write(tmp_path / f"{name}.csv", text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"timestamp": None}, "the column 'timestamp' is missing"),
        ({"timestamp": -1}, "timestamp must be"),
        ({"timestamp": 4}, "goes back"),
        ({"input_length": 0}, "input_length must be"),
        ({"output_length": -1}, "output_length must be"),
        ({"input_length": float("nan")}, "input_length must be"),
        ({"input_length": 10**400}, "input_length must be"),
        ({"hash_ids": "1,2"}, "hash_ids must be a list"),
        ({"hash_ids": [[1]]}, "hash_ids must be a list"),
        ({"hash_ids": [1, 2, 3, 4]}, "4 hash_ids of 16 tokens each are too many for a prompt"),
    ],
)
def test_a_broken_mooncake_row_gets_one_sentence(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    """The second line is named."""
    path = jsonl(tmp_path / "m.jsonl", ROW, {**ROW, **change})
    with pytest.raises(UserError, match="line 2: ") as caught:
        readers.load(path)
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"id": ' + "9" * 5_000 + "}", "{'id': 1}", '"text"']
)
def test_json_that_is_none_gets_one_sentence(tmp_path: Path, line: str) -> None:
    """Endless brackets and endless numbers do not end in a traceback."""
    with pytest.raises(UserError, match=r"line 1[:,] "):
        readers.load(write(tmp_path / "w.jsonl", line + "\n"))


@pytest.mark.parametrize("start", ["{", "TIMESTAMP,ContextTokens,GeneratedTokens\n"])
def test_a_line_without_end_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Reading stops at the bound; the sentence names the line."""
    monkeypatch.setattr(text_files, "MAX_LINE_CHARS", 1_000)
    path = write(tmp_path / "w.txt", start + "1" * 5_000)
    with pytest.raises(UserError, match=rf"line {1 + start.count(chr(10))}: longer than 1000 char"):
        readers.load(path)


def test_a_line_as_long_as_allowed_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound itself is still a line."""
    row = '{"arrived_at_s": 0, "num_prompt_tokens": 1, "num_output_tokens": 1}\n'
    monkeypatch.setattr(text_files, "MAX_LINE_CHARS", len(row))
    assert len(readers.load(write(tmp_path / "w.jsonl", row))) == 1


def test_two_gigabytes_without_a_line_end_cost_little_memory(tmp_path: Path) -> None:
    """A sparse file of zeros is refused after 16 Mi characters, held a few times over at most."""
    path = tmp_path / "zeros.jsonl"
    with path.open("wb") as file:
        file.truncate(2 * 1024**3)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="line 1: longer than 16777216"):
            readers.load(path)
        assert tracemalloc.get_traced_memory()[1] < 100_000_000
    finally:
        tracemalloc.stop()


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    """Files saved on Windows are read like others."""
    path = write(tmp_path / "a.csv", "\ufeff" + AZURE + "2023-11-16 18:00:00,3,5\n")
    assert readers.load(path)[0].num_prompt_tokens == 3


def test_lengths_alone_are_an_offline_batch(tmp_path: Path) -> None:
    """All at 0 s, under either pair of column names."""
    for header in (LENGTHS, "num_prompt_tokens,num_output_tokens,x,y\n"):
        first, second = readers.load(write(tmp_path / "l.csv", header + "7,3,10,2\n8,1,9,8\n"))
        assert first == WorkloadRequest("r0", 0.0, 7, 3)
        assert second == WorkloadRequest("r1", 0.0, 8, 1)


def test_the_dialects_of_mooncake_are_told_apart(tmp_path: Path) -> None:
    """16 or 512 tokens a hash by what fits; seconds or milliseconds by the rate."""
    rows = [{**ROW, "timestamp": 0}, {**ROW, "timestamp": 2}]
    timed = readers.load(jsonl(tmp_path / "s.jsonl", *rows))
    assert [(r.arrived_at_s, r.hash_tokens) for r in timed] == [(0.0, 16), (2.0, 16)]
    assert {r.hash_ids for r in timed} == {(1, 2, 3)}
    qwen = [{"chat_id": 1, **row, "timestamp": 100 * row["timestamp"]} for row in rows]
    made = readers.load(jsonl(tmp_path / "q.jsonl", *qwen))
    assert [(r.arrived_at_s, r.hash_tokens) for r in made] == [(0.0, 16), (200.0, 16)]
    long = [{**row, "input_length": 1_400, "timestamp": 100 * row["timestamp"]} for row in rows]
    mooncake = jsonl(tmp_path / "m.jsonl", *long)
    assert [(r.arrived_at_s, r.hash_tokens) for r in readers.load(mooncake)] == [
        (0.0, 512),
        (0.2, 512),
    ]
    said = readers.load(mooncake, ReadOptions(time_unit="s", hash_tokens=16))
    assert [(r.arrived_at_s, r.hash_tokens) for r in said] == [(0.0, 16), (200.0, 16)]


@needs_traces
def test_the_measured_run_lists_the_same_requests() -> None:
    """LLMServingSim's request file and its measured vLLM run agree, length by length."""
    folder = TRACES / "llmservingsim"
    made = readers.load(folder / "sharegpt-llama-3.1-8b-300-sps10.sanitized.jsonl")
    measured = folder / "measured_RTX4090_Llama-3.1-8B_requests.jsonl"
    rows = [json.loads(line) for line in measured.read_text().splitlines()]
    rows.sort(key=lambda row: int(row["request_id"].removeprefix("bench-")))
    assert [(r.num_prompt_tokens, r.num_output_tokens) for r in made] == [
        (row["input_toks"], row["output_toks"]) for row in rows
    ]
    assert 299 / made[-1].arrived_at_s == pytest.approx(10.0, rel=0.05)


@needs_traces
def test_mooncake_s_published_prefix_hits_are_found() -> None:
    """3,993 requests, 3.91 a second, 65 % of the prompt tokens seen before."""
    made = readers.load(TRACES / "mooncake" / "synthetic_trace.jsonl")
    assert len(made) == 3_993
    found = sum(found_tokens(made))
    assert found / sum(r.num_prompt_tokens for r in made) == pytest.approx(0.65, abs=0.005)


@needs_traces
@pytest.mark.parametrize(
    ("name", "count", "mean_prompt"),
    [
        ("sarathi/sharegpt_8k_filtered_stats_llama2_tokenizer.csv", 30_731, 2340),
        ("vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", 28_257, 2588),
    ],
)
def test_published_length_files_are_read(name: str, count: int, mean_prompt: int) -> None:
    """Every row, with the published mean."""
    made = readers.load(TRACES / name)
    assert len(made) == count
    assert sum(r.num_prompt_tokens for r in made) / count == pytest.approx(mean_prompt, abs=0.5)
