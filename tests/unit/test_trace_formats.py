"""Every known format is recognised by its columns, and nothing is guessed in silence."""

from __future__ import annotations

import gzip
import importlib
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from trace_shapes import CHAINS, CSV_SHAPES, LENGTHS, SHAPES, Shape

from headway.cli.trace import trace
from headway.errors import UserError
from headway.slo import SloBook
from headway.workloads.public import traces
from headway.workloads.readers import load, read
from headway.workloads.reading import Reading, ReadOptions

TRACES = traces()
by_name = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)


def written(folder: Path, shape: Shape) -> Path:
    path = folder / shape.name
    path.write_text(shape.text, encoding="utf-8")
    return path


def csv(folder: Path, *lines: str) -> Path:
    path = folder / "t.csv"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def times_s(reading: Reading) -> list[float]:
    return [request.arrived_at_s for request in reading.requests]


@by_name
def test_a_known_shape_is_read_and_said(tmp_path: Path, shape: Shape) -> None:
    """Times, lengths, chains and skipped rows are right, and the line says how it was read."""
    reading = read(written(tmp_path, shape))
    assert times_s(reading) == pytest.approx(shape.times_s, abs=1e-5)
    lengths = [(r.num_prompt_tokens, r.num_output_tokens) for r in reading.requests]
    assert lengths == list(LENGTHS)
    assert shape.said in reading.sentence()
    assert dict(reading.num_skipped) == shape.num_skipped
    if shape.is_chained:
        assert [r.hash_ids for r in reading.requests] == list(CHAINS)
        assert {r.hash_tokens for r in reading.requests} == {16}


@by_name
def test_inspect_prints_how_a_shape_was_read(tmp_path: Path, shape: Shape) -> None:
    """Format, units, rate, span, lengths and shared prefixes, on the terminal and as JSON."""
    out = tmp_path / "facts.json"
    path = written(tmp_path, shape)
    result = CliRunner().invoke(trace, ["inspect", str(path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    assert shape.said in result.output
    assert "3 requests in" in result.output
    assert "of the prompt tokens were seen before" in result.output
    facts = json.loads(out.read_text())["trace"]
    assert facts == read(path).facts()


@by_name
def test_one_option_leaves_the_rest_as_it_was_recognised(tmp_path: Path, shape: Shape) -> None:
    """A unit changes times alone, a size of hashes their size alone; order changes nothing."""
    path = written(tmp_path, shape)
    plain = read(path)
    assert read(path, ReadOptions(sort=True)).requests == plain.requests
    if shape.is_chained:
        sized = read(path, ReadOptions(hash_tokens=15))
        assert times_s(sized) == times_s(plain)
        assert {r.hash_tokens for r in sized.requests} == {15}
    if plain.unit in ("s", "ms") and plain.columns.get("arrived"):
        # Said to be microseconds: the same numbers, as many times smaller.
        slow = read(path, ReadOptions(time_unit="us", any_rate=True))
        scale = {"s": 1e-6, "ms": 1e-3}[plain.unit]
        assert times_s(slow) == pytest.approx([at_s * scale for at_s in times_s(plain)], abs=2e-6)
        assert [r.hash_ids for r in slow.requests] == [r.hash_ids for r in plain.requests]
        assert [r.hash_tokens for r in slow.requests] == [r.hash_tokens for r in plain.requests]


@pytest.mark.parametrize("shape", CSV_SHAPES, ids=lambda shape: shape.name)
def test_a_file_by_a_spreadsheet_is_the_same_file(tmp_path: Path, shape: Shape) -> None:
    """A byte order mark, quotes, spaces, trailing commas, blank lines and CR LF change nothing."""
    plain = read(written(tmp_path, shape))
    lines = shape.text.splitlines()
    quoted = [", ".join(f'"{cell}"' for cell in line.split(",")) for line in lines]
    for changed in (
        "\ufeff" + shape.text,
        "\r\n".join(quoted) + "\r\n",
        "\n\n".join(f"{line},," for line in lines),
        "".join(" , ".join(line.split(",")) + "\n" for line in lines),
    ):
        path = tmp_path / "changed.csv"
        path.write_bytes(changed.encode())
        again = read(path)
        assert again.requests == plain.requests
        assert again.sentence() == plain.sentence()


@by_name
def test_a_packed_file_is_the_same_file(tmp_path: Path, shape: Shape) -> None:
    """By its first bytes, whatever its name; the command reads it too."""
    plain = read(written(tmp_path, shape))
    path = tmp_path / "packed"
    path.write_bytes(gzip.compress(shape.text.encode()))
    assert read(path).requests == plain.requests
    result = CliRunner().invoke(trace, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged packed file"):
        read(path)


def test_a_file_packed_by_zstd_is_read(tmp_path: Path) -> None:
    """Python 3.14 brings the codec, backports.zstd the same one before."""
    try:
        zstd = importlib.import_module("compression.zstd")
    except ImportError:
        zstd = pytest.importorskip("backports.zstd")
    path = tmp_path / "t.csv.zst"
    path.write_bytes(zstd.compress(SHAPES[2].text.encode()))
    assert len(load(path)) == 3
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match="damaged packed file"):
        load(path)


AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"


@pytest.mark.parametrize(
    ("stamps", "gaps_s"),
    [
        (("2024-10-27 02:59:58+02:00", "2024-10-27 02:00:01+01:00"), [3.0]),
        (("2024-03-31 01:59:59+01:00", "2024-03-31 03:00:00+02:00"), [1.0]),
        (("2024-05-10T00:00:00-05:00", "2024-05-10T05:00:01.5Z"), [1.5]),
        (("2024-05-10 00:00:00", "2024-05-10 00:00:01Z"), [1.0]),
    ],
)
def test_the_offset_of_a_time_counts(
    tmp_path: Path, stamps: tuple[str, ...], gaps_s: list[float]
) -> None:
    """In either direction, and when it changes inside of the file."""
    made = load(csv(tmp_path, AZURE, *(f"{stamp},10,5" for stamp in stamps)))
    assert [r.arrived_at_s for r in made[1:]] == gaps_s


BURST = "Timestamp,Request tokens,Response tokens"
LATE = (BURST, "9,30,1", "4,20,2", "7,10,3")


def test_rows_out_of_order_are_sorted_when_told(tmp_path: Path) -> None:
    """Without --sort the first such line is named."""
    path = csv(tmp_path, *LATE)
    with pytest.raises(UserError, match=r"line 3: Timestamp goes back from 9 to 4.*--sort"):
        read(path)
    reading = read(path, ReadOptions(sort=True))
    assert times_s(reading) == [0.0, 3.0, 5.0]
    assert [r.num_prompt_tokens for r in reading.requests] == [20, 10, 30]
    assert "sorted by arrival" in reading.sentence()


def test_columns_can_be_named(tmp_path: Path) -> None:
    """For a file of no known format, and over what a format says; the unit is found as ever."""
    path = csv(tmp_path, "sent_ms,in,out,kind", "0,30,1,chat", "2000,20,2,")
    columns = (("arrived", "sent_ms"), ("prompt", "in"), ("output", "out"), ("class", "kind"))
    reading = read(path, ReadOptions(columns=columns))
    assert times_s(reading) == [0.0, 2.0]
    assert [r.slo_class for r in reading.requests] == ["chat", None]
    assert "times read as milliseconds: the column is sent_ms" in reading.sentence()
    path = csv(tmp_path, "arrived_at,queued_at,num_prefill_tokens,num_decode_tokens", "0,5,1,1",
               "1,15,1,1")  # fmt: skip
    queued = read(path, ReadOptions(columns=(("arrived", "queued_at"),)))
    assert times_s(queued) == [0.0, 10.0]
    alone = read(path, ReadOptions(columns=(("arrived", "none"),)))
    assert times_s(alone) == [0.0, 0.0]


def test_a_hash_column_that_the_first_row_lacks_is_kept(tmp_path: Path) -> None:
    """Rows without hashes do not cost the others theirs."""
    row = {"timestamp": 0, "input_length": 40, "output_length": 7}
    later = {**row, "timestamp": 3, "hash_ids": [1, 2, 3]}
    path = tmp_path / "m.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps(later) + "\n")
    assert [r.hash_ids for r in load(path)] == [(), (1, 2, 3)]


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (("a,b", "1,2"), "line 1: no known format with the columns a, b"),
        (("sent,num_prefill_tokens,num_decode_tokens,start", "0,1,1,7"), "line 1: 'start' may be"),
        ((BURST, "0,1,1", "100000000,1,1"), "one in 100,000,000 s; is the unit right"),
        ((BURST, "0,1,1", "0.000001,1,1"), "1e+06 a second; is the unit right"),
        (("timestamp,input_tokens,output_tokens", "0,1,1", "20,1,1"), "--time-unit ms"),
        ((AZURE, "2024-05-10 00:00:00+02:00,1,1", "2024-05-10 00:00:00,1,1"), "line 3: TIMESTAMP"),
        ((f"{AZURE},TIMESTAMP", "1,1,1,1"), "line 1: two columns are named 'TIMESTAMP'"),
        ((BURST, "0,1,1,9"), "line 2: 4 fields under a header of 3"),
        ((f"{BURST},Model", '0,1,1,"GPT', '1,1,1,G"'), "line 3: a field goes on over the end"),
        (("timestamp,input_tokens,output_tokens", "0,1,1", "2024-05-10,1,1"), "holds a date"),
    ],
)
def test_an_ambiguous_file_gets_one_sentence(
    tmp_path: Path, lines: tuple[str, ...], sentence: str
) -> None:
    """With the place, or with the options that decide it; exit code 2 is every UserError's."""
    with pytest.raises(UserError) as caught:
        read(csv(tmp_path, *lines))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_implausible_rate_can_be_meant(tmp_path: Path) -> None:
    """--any-rate serves it."""
    path = csv(tmp_path, BURST, "0,1,1", "100000000,1,1")
    assert times_s(read(path, ReadOptions(any_rate=True))) == [0.0, 1e8]


def test_rows_of_commas_alone_are_counted(tmp_path: Path) -> None:
    """A spreadsheet ends so."""
    reading = read(csv(tmp_path, BURST, "0,1,1", "1,1,1", ",,", ",,"))
    assert (len(reading.requests), reading.num_skipped["without any value"]) == (2, 2)


def test_a_summary_without_requests_says_what_is_missing(tmp_path: Path) -> None:
    """vLLM's result without --save-detailed."""
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"request_throughput": 1.0, "mean_ttft_ms": 3}))
    with pytest.raises(UserError, match="--save-detailed"):
        read(path)


def test_an_slo_file_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    """As Windows saves it."""
    path = tmp_path / "slo.toml"
    path.write_text("\ufeff[classes.chat]\nttft_s = 1\n", encoding="utf-8")
    assert SloBook.load(path).classes["chat"].ttft_s == 1.0


SHARED = sorted(TRACES.glob("*/*")) if TRACES.is_dir() else []
READ = ("azure2023", "requests.jsonl", "sanitized", "synthetic_trace", "_stats_")


@pytest.mark.skipif(not SHARED, reason="needs the public traces: HEADWAY_TRACES")
def test_inspect_reads_or_refuses_each_shared_file() -> None:
    """Request traces are read; all else gets one sentence."""
    for path in SHARED:
        if "LICENSE" in path.name:
            continue
        result = CliRunner().invoke(trace, ["inspect", str(path)])
        if any(mark in str(path) for mark in READ):
            assert result.exit_code == 0, (path, result.output)
            assert "Read as " in result.output
        else:
            assert isinstance(result.exception, UserError), (path, result.output)
            assert "\n" not in str(result.exception)
