"""``headway report`` from the command line: a page, or one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from headway.cli.report import report
from headway.errors import UserError

RUN = {"policy": "fcfs", "engine": "sim", "rate_rps": 2.0, "seed": 0, "attainment": 0.5}
COLUMNS = (
    "begins_s", "ends_s", "predicted_s", "promised_s", "num_prefill_tokens", "num_decodes",
    "num_running", "num_waiting", "held_tokens", "reserved_tokens",
)  # fmt: skip


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    path = tmp_path / "out.json"
    path.write_text(json.dumps({"schema": 1, "runs": [RUN]}))
    return path


def called(*argv: object) -> Result:
    return CliRunner().invoke(report, [str(a) for a in argv])


def test_a_summary_and_a_folder_become_one_page(tmp_path: Path, summary: Path) -> None:
    """Files and folders mix; the same run is counted once; the sentence says what was written."""
    kept = tmp_path / "kept"
    kept.mkdir()
    timeline = {name: [] for name in COLUMNS} | {"capacity_tokens": 10}
    document = {"schema": 1, "spec": {}, "run": RUN, "timeline": timeline, "requests": []}
    (kept / "one.run.json.gz").write_bytes(gzip.compress(json.dumps(document).encode()))
    out = tmp_path / "page.html"
    result = called(summary, kept, "--out", out, "--title", "A & B", "--rate", "2")
    assert result.exit_code == 0, result.output
    assert f"Wrote {out}: 1 runs, 1 of them kept" in result.output
    assert "<h1>A &amp; B</h1>" in out.read_text()


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["missing.json"], "Cannot read missing.json"),
        (["{folder}", "--out", "{folder}/no/page.html"], "does not exist"),
        (["{summary}", "--out", "{folder}"], "is a folder; --out names the page"),
        (["{summary}", "--rate", "fast"], "--rate: the rate must be a number greater than 0"),
        (["{summary}", "--rate", "2", "--out", "{folder}/p.html"], "No kept run has a rate of 2"),
        (["{folder}/empty"], "holds no *.json"),
    ],
)
def test_mistakes(tmp_path: Path, summary: Path, argv: list[str], sentence: str) -> None:
    """Each mistake is one sentence, and no page is written."""
    (tmp_path / "empty").mkdir()
    result = called(*(a.format(folder=tmp_path, summary=summary) for a in argv))
    assert isinstance(result.exception, UserError)
    assert sentence in str(result.exception)
    assert not list(tmp_path.rglob("*.html"))


def test_inputs_are_required() -> None:
    """Without an input there is a usage sentence and exit code 2."""
    result = called()
    assert result.exit_code == 2
    assert "INPUTS" in result.output
