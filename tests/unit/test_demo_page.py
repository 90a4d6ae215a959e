"""The demo's page and summary, from three made-up runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from headway.bench.contenders import everyone
from headway.bench.contest import Entry, Leg
from headway.cli.demo import _write
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.slo import Slo, SloBook
from headway.web import demo_figures as figures
from headway.web.bars import story_of
from headway.web.demo_page import page_of, promise_text
from headway.web.wait_figures import first_token_waits
from headway.workloads.realtext import SLO_FILE, demo_workload

MACHINE = {"processor": "a <fast> one", "cores": 2}


def entries() -> list[Entry]:
    """Three contenders, each slower than the next; one request of each is refused."""
    book = SloBook.load(SLO_FILE)
    result = []
    for contender, wait_s in zip(everyone(), (3.0, 0.8, 0.2), strict=True):
        records = []
        for index, request in enumerate(demo_workload(20, 1)):
            emitted = tuple(index + wait_s + 0.15 * wait_s * k for k in range(10))
            refused = index == 3
            records.append(
                RequestRecord(
                    request.id,
                    book.classes[request.slo_class or ""],
                    float(index),
                    () if refused else emitted,
                    "refused" if refused else "finished",
                    request.num_prompt_tokens,
                    ended_at_s=float(index) if refused else emitted[-1],
                )
            )
        run = summarise(records, RunFacts(contender.policy, "live", 1, 1.0))
        lag = dict.fromkeys(("p50", "p95", "p99", "max"), 0.001)
        run["client_lag_s"] = {"send": lag, "loop": lag}
        run |= {"title": contender.title, "command": contender.command}
        result.append(Entry(contender, Leg(1.0, 1, 20), run, records))
    return result


def test_the_page_stands_alone_and_says_the_result() -> None:
    """No request leaves the page; verdict, promises, commands and machine are on it."""
    page = page_of(entries(), MACHINE)
    outside = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)
    assert not re.search(r'(?:src|href)="https?://', outside)
    assert "Plotly.newPlot" in page
    assert "Headway kept 19" in page
    assert "the first token within 1 s" in page
    assert "--scheduling-policy priority" in page
    assert "a &lt;fast&gt; one" in page
    assert str(SLO_FILE.parent) not in page


def test_a_waterfall_has_every_request_once() -> None:
    """Each request is waiting on exactly one row; a refused one ends in a cross."""
    entry = entries()[0]
    figure = figures.waterfall(entry.records, 30.0)
    traces = {trace.name: trace for trace in figure.data}
    rows = [y for y in traces["waiting for the first word"].y if y is not None]
    assert sorted(rows[::2]) == list(range(20))
    assert len(traces["no answer"].x) == 1
    kept = sum(record.attained for record in entry.records)
    assert len(traces["answer, promise kept"].x) == 3 * kept


def test_rows_are_grouped_by_patience() -> None:
    """Chats come first, background jobs last."""
    names = [record.slo.class_name for record in figures.in_rows(entries()[0].records)]
    assert list(dict.fromkeys(names)) == ["chat", "summary", "batch"]


def test_a_wait_curve_never_counts_the_unanswered_as_answered() -> None:
    """A refused request keeps its contender's curve below 100 %."""
    figure = first_token_waits(figures.compared(entries()))
    assert max(figure.data[0].y) < 100


def test_a_story_tells_promises_and_what_came_of_them() -> None:
    """The text of a bar has the outcome, the waits and the promises."""
    record = entries()[0].records[3]
    assert "broken (refused)" in story_of(record)
    assert "(promised 1 s)" in story_of(record)


def test_promises_in_words() -> None:
    """Each dimension has its words; none promised is said too."""
    assert promise_text(Slo(jct_s=60)) == "all done within 60 s"
    assert promise_text(Slo()) == "nothing promised"


def test_the_summary_has_three_runs(tmp_path: Path) -> None:
    """summary.json is stock, stock_best and headway, each the summary of a run."""
    _write(entries(), tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["stock", "stock_best", "headway"]
    for run in summary.values():
        assert {"attainment", "goodput_rps", "ttft_s", "per_class", "command"} <= set(run)
    assert (tmp_path / "index.html").exists()
    assert (tmp_path / "headway.jsonl").read_text(encoding="utf-8").count("\n") == 20
