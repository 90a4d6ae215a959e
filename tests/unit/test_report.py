"""The report page, from runs of a small first-come-first-served server made here."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway.errors import UserError
from headway.metrics.kept import KeptRun, Timeline
from headway.metrics.lateness import of_run
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.slo import Slo
from headway.web import (
    load_figures,
    material,
    reliability,
    report_page,
    run_figures,
    series,
    tables,
    theme,
)

SLOS = {
    "chat": Slo(ttft_s=0.5, tbt_s=0.06, class_name="chat"),
    "batch": Slo(jct_s=6.0, class_name="batch"),
}
CAPACITY_TOKENS = 4000


class Job:
    """One request of the small server."""

    def __init__(self, index: int, arrived_at_s: float, rng: np.random.Generator) -> None:
        self.id = f"r{index}"
        self.slo = SLOS["chat" if index % 3 else "batch"]
        self.arrived_at_s = arrived_at_s
        self.num_prompt_tokens = int(rng.integers(50, 900))
        self.num_output_tokens = int(rng.integers(5, 60))
        self.num_computed = 0
        self.num_preemptions = 0
        self.emitted_at_s: list[float] = []
        self.phases: list[tuple[float, str]] = []
        self.outcome = "finished"

    @property
    def held_tokens(self) -> int:
        return self.num_prompt_tokens + len(self.emitted_at_s)

    @property
    def is_done(self) -> bool:
        return len(self.emitted_at_s) == self.num_output_tokens


def served(
    rate_rps: float, seed: int, budget_tokens: int, slower: float = 1.0, num: int = 80
) -> Any:
    """Serve *num* jobs first come first served; return the jobs and the rows of the timeline."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, num))
    waiting_to_come = deque(Job(i, float(at_s), rng) for i, at_s in enumerate(arrivals))
    queue: deque[Job] = deque()
    running: list[Job] = []
    jobs, rows, now_s = list(waiting_to_come), [], 0.0
    while waiting_to_come or queue or running:
        if not queue and not running:
            now_s = max(now_s, waiting_to_come[0].arrived_at_s)
        while waiting_to_come and waiting_to_come[0].arrived_at_s <= now_s:
            job = waiting_to_come.popleft()
            job.phases.append((now_s, "queued"))
            if len(queue) >= 40:
                job.outcome = "refused"
                continue
            queue.append(job)
        held = sum(job.held_tokens for job in running)
        while held + len(running) > CAPACITY_TOKENS:
            victim = running.pop()
            held -= victim.held_tokens
            victim.num_computed, victim.num_preemptions = 0, victim.num_preemptions + 1
            victim.phases.append((now_s, "preempted"))
            queue.appendleft(victim)
        while queue and held + queue[0].held_tokens + len(running) < CAPACITY_TOKENS:
            job = queue.popleft()
            job.phases.append((now_s, "prefill"))
            held += job.held_tokens
            running.append(job)
        left, prefill, emitting, decodes = budget_tokens, 0, [], 0
        for job in running:
            chunk = min(left, job.num_prompt_tokens - job.num_computed)
            decodes += not chunk
            job.num_computed += chunk
            left, prefill = left - chunk, prefill + chunk
            if job.num_computed == job.num_prompt_tokens:
                emitting.append(job)
        predicted_s = 0.01 + 1e-4 * prefill + 3e-4 * decodes
        ends_s = now_s + slower * predicted_s * float(rng.lognormal(0.0, 0.08))
        left_to_come = sum(job.num_output_tokens - len(job.emitted_at_s) for job in running)
        rows.append(
            (now_s, ends_s, predicted_s, 1.15 * predicted_s, prefill, decodes, len(running),
             len(queue), sum(job.held_tokens for job in running), left_to_come)
        )  # fmt: skip
        now_s = ends_s
        for job in emitting:
            job.emitted_at_s.append(now_s)
            if job.phases[-1][1] != "decode":
                job.phases.append((now_s, "decode"))
        running = [job for job in running if not job.is_done]
    return jobs, rows


COLUMNS = (
    "begins_s", "ends_s", "predicted_s", "promised_s", "num_prefill_tokens", "num_decodes",
    "num_running", "num_waiting", "held_tokens", "reserved_tokens",
)  # fmt: skip


def kept_document(
    policy: str, rate_rps: float, seed: int, budget_tokens: int, slower: float = 1.0, num: int = 80
) -> dict[str, Any]:
    """Return a kept run as ``simulate --keep`` writes it."""
    jobs, rows = served(rate_rps, seed, budget_tokens, slower, num)
    records = [
        RequestRecord(
            job.id, job.slo, job.arrived_at_s, tuple(job.emitted_at_s), job.outcome,  # type: ignore[arg-type]
            job.num_prompt_tokens, ended_at_s=(job.emitted_at_s or [job.arrived_at_s])[-1],
        )
        for job in jobs
    ]  # fmt: skip
    preempted = sum(job.num_preemptions for job in jobs)
    run = summarise(
        records,
        RunFacts(policy, "sim", seed, rate_rps, {"recompute": preempted, "swap": 0}),
    )
    if slower != 1.0:
        run["step_time_band"] = round(slower - 1.0, 3)
    return {
        "schema": 1,
        "spec": {"policy": policy, "engine": "sim", "options": {},
                 "load": {"source": "/far/away/mixed.jsonl", "rate_rps": rate_rps, "seed": seed},
                 "machine": {"gpu": "a <small> one", "kv_tokens": CAPACITY_TOKENS, "noise": 0.08}},
        "run": run,
        "timeline": {
            **{name: [row[i] for row in rows] for i, name in enumerate(COLUMNS)},
            "capacity_tokens": CAPACITY_TOKENS,
        },
        "requests": [
            {"id": r.id, "slo_class": r.slo.class_name,
             "slo": {"ttft_s": r.slo.ttft_s, "tbt_s": r.slo.tbt_s, "jct_s": r.slo.jct_s},
             "arrived_at_s": r.arrived_at_s, "emitted_at_s": list(r.emitted_at_s),
             "outcome": r.outcome, "attained": r.attained, "phases": [list(p) for p in job.phases],
             "num_prompt_tokens": r.num_prompt_tokens, "num_preemptions": job.num_preemptions}
            for r, job in zip(records, jobs, strict=True)
        ],
    }  # fmt: skip


def kept_file(folder: Path, document: dict[str, Any], name: str = "one") -> Path:
    """Write a kept run as it lies in a folder."""
    path = folder / f"{name}.run.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    return path


POLICIES = {"fcfs": 4096, "headway": 160}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a study leaves it: a summary of all runs, and some of them kept."""
    path = tmp_path_factory.mktemp("study")
    runs = []
    for policy, budget_tokens in POLICIES.items():
        for rate_rps in (6.0, 12.0, 20.0):
            for seed in (0, 1):
                document = kept_document(policy, rate_rps, seed, budget_tokens)
                runs.append(document["run"])
                if seed == 0:
                    kept_file(path, document, f"{policy}-{rate_rps:g}")
            for slower in (0.8, 1.2):
                runs.append(kept_document(policy, rate_rps, 0, budget_tokens, slower)["run"])
    (path / "out.json").write_text(json.dumps({"schema": 1, "runs": runs}))
    return path


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return report_page.page_of(material.load([folder]))


def without_script(page: str) -> str:
    return re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)


def data_of(page: str, number: int) -> list[dict[str, Any]]:
    """Return the traces of one figure of the page."""
    found = re.search(
        rf'Plotly\.newPlot\(\s*"figure-{number}",\s*(\[.*?\]),\s*\{{"', page, re.DOTALL
    )
    assert found is not None
    traces: list[dict[str, Any]] = json.loads(found[1])
    return traces


def test_the_page_stands_alone(page: str) -> None:
    """Nothing is fetched, no path of the machine is named, and user text is escaped."""
    outside = without_script(page)
    assert not re.search(r'(?:src|href)="https?://', outside)
    assert "/tmp" not in outside
    assert "/far/away" not in outside
    assert "a &lt;small&gt; one" in outside
    assert "<small> one" not in outside
    assert len(page) < 15_000_000


def test_the_page_has_every_section(page: str) -> None:
    """Summaries, comparisons and each kept policy from the inside are all there."""
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Key figures",
        "How many promises are kept, and what that is worth",
        "Kind of user by kind of user",
        "If the machine were slower or faster than thought",
        "The middle and the tail of the waits",
        "The wait for the first token",
        "The pauses while the answer comes",
        "Where lateness came from",
        "Inside fcfs",
        "Inside headway",
        "What was run",
    ]


def test_the_same_input_gives_the_same_bytes(folder: Path, page: str) -> None:
    """A report can be compared and cached: nothing random is in it."""
    assert report_page.page_of(material.load([folder])) == page


def test_lines_are_means_over_seeds_with_their_spread(folder: Path, page: str) -> None:
    """The line is the mean, the band the least and greatest; scaled step times stay out."""
    runs = material.load([folder]).runs
    plain = [r for r in runs if r["policy"] == "fcfs" and not r.get("step_time_band")]
    at = [r["attainment"] for r in plain if r["rate_rps"] == 20.0]
    assert len(at) == 2
    found = series.points(plain, series.percent_of("attainment"))
    assert [p.load_rps for p in found] == [6.0, 12.0, 20.0]
    assert found[-1].mean == pytest.approx(50 * sum(at))
    assert (found[-1].low, found[-1].high) == (100 * min(at), 100 * max(at))
    line = next(t for t in data_of(page, 1) if t.get("name") == "fcfs" and t["yaxis"] == "y")
    assert line["y"][-1] == found[-1].mean


def test_scaled_step_times_are_a_band_and_a_chart_each(folder: Path) -> None:
    """The band spans all scales and seeds; below it each scale is a chart of its own."""
    runs = material.load([folder]).runs
    groups = series.groups_of(runs, series.Labels(runs))
    fcfs = [r for r in runs if r["policy"] == "fcfs" and r["rate_rps"] == 20.0]
    shares = {100 * r["attainment"] for r in fcfs}
    assert len(fcfs) == 4
    shaded = load_figures.step_time_band(groups).data[0]
    assert {y for x, y in zip(shaded.x, shaded.y, strict=True) if x == 20.0} == {
        max(shares),
        min(shares),
    }
    charts = load_figures.by_machine(groups)
    titles = [note.text for note in charts.layout.annotations]
    assert titles == ["steps 20% shorter", "steps as modelled", "steps 20% longer"]
    slow = next(t for t in charts.data if t.name == "fcfs" and t.yaxis == "y3" and t.text)
    (expected,) = [100 * r["attainment"] for r in fcfs if r.get("step_time_band") == 0.2]
    assert slow.y[-1] == expected


def test_a_run_in_a_summary_and_kept_counts_once(folder: Path) -> None:
    """Twelve plain runs and twelve scaled ones, six of them also kept, are twenty-four."""
    loaded = material.load([folder])
    assert len(loaded.runs) == 24
    assert len(loaded.kept) == 6
    assert all(run["workload"] == "mixed.jsonl" for run in loaded.runs if run["seed"] == 0
               and not material.band(run))  # fmt: skip
    assert loaded.sources[-1] == "out.json"


def test_a_summary_with_bounds_knows_its_kept_runs(folder: Path, tmp_path: Path) -> None:
    """simulate --bound writes what no scheduler can pass beside a run that was kept without it."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    document = json.loads((folder / "out.json").read_text())
    document["runs"] = [{**run, "bound": 1.0} for run in document["runs"]]
    (tmp_path / "out.json").write_text(json.dumps(document))
    assert len(material.load([tmp_path]).kept) == 6


def test_inside_is_the_heaviest_common_load_or_the_one_asked_for(folder: Path) -> None:
    """Policies are compared at one load; a load nobody kept is the user's mistake."""
    loaded = material.load([folder])
    labels = series.Labels(loaded.runs)
    groups = series.groups_of(loaded.runs, labels)
    assert {k.run["rate_rps"] for k in series.chosen(loaded.kept, groups, labels, None)} == {20.0}
    assert {k.run["rate_rps"] for k in series.chosen(loaded.kept, groups, labels, 6.0)} == {6.0}
    without = [k for k in loaded.kept if k.run["policy"] == "fcfs" or k.run["rate_rps"] < 20]
    assert {k.run["rate_rps"] for k in series.chosen(without, groups, labels, None)} == {12.0}
    with pytest.raises(UserError, match=r"No kept run has a rate of 7 .* 6, 12, 20"):
        report_page.page_of(loaded, rate_rps=7.0)


def test_one_run_without_details(tmp_path: Path) -> None:
    """A single summary run becomes bars, and the page says how to see more."""
    run = kept_document("fcfs", 6.0, 0, 4096)["run"]
    (tmp_path / "one.json").write_text(json.dumps({"schema": 1, "runs": [run]}))
    page = report_page.page_of(material.load([tmp_path / "one.json"]))
    assert "--keep FOLDER" in page
    assert data_of(page, 1)[0]["type"] == "bar"
    assert "At 6 requests a second, fcfs kept" in page


def test_runs_counted_by_different_definitions_are_not_compared_in_silence() -> None:
    """One sentence where they differ, another where all are from before, none where all are new."""
    new = kept_document("fcfs", 6.0, 0, 4096)["run"]
    old = dict(kept_document("slack", 6.0, 0, 4096)["run"])
    for name in ("definition", "attainment_by_reading", "pause_s"):
        del old[name]
    mixed, before, now = (
        report_page.page_of(material.Material(runs, [], ["x.json"]))
        for runs in ([new, old], [old], [new])
    )
    assert "not alike in what a kept promise is" in mixed
    assert "These runs were counted by 99 % of the gaps alone" in before
    assert "without the pause, %" not in before
    for heading in ("without the pause, %", "every gap, %", "at a pace, %", "longest pause P99"):
        assert heading in now
    assert "not alike" not in now + before
    assert "gaps alone" not in now


def test_nulls_and_nothing_attained() -> None:
    """Unknown figures are dashes, no promise kept is zero, and the page is still whole."""
    runs: list[dict[str, Any]] = [
        {"policy": "fcfs", "engine": "sim", "rate_rps": rate, "attainment": 0.0,
         "goodput_rps": 0.0, "ttft_s": {"p50": None, "p99": None}, "tbt_s": None,
         "per_class": {"chat": None}, "preemptions": {"recompute": None, "swap": None}}
        for rate in (None, 2.0)
    ]  # fmt: skip
    page = report_page.page_of(material.Material(runs, [], ["x.json"]))
    assert "kept 0\u00a0% of promises" in page
    assert "no figure to draw" in page
    unknown = report_page.page_of(material.Material([{"policy": "fcfs"}], [], []))
    assert "No run says how many promises it kept." in unknown


def test_refused_requests_are_counted_and_marked(tmp_path: Path) -> None:
    """A refused request has no wait: it is in the table as unanswered and a cross in the figure."""
    document = kept_document("fcfs", 60.0, 0, 4096)
    refused = sum(r["outcome"] == "refused" for r in document["requests"])
    assert refused > 0
    loaded = material.load([kept_file(tmp_path, document)])
    page = report_page.page_of(loaded)
    assert "requests broke their promise without a wait to measure" in page
    kept = loaded.kept[0].open()
    figure = run_figures.waterfall(kept.requests, of_run(kept))
    crosses = next(trace for trace in figure.data if trace.name == "no answer")
    assert len(crosses.x) == refused


def test_a_kept_run_without_steps_or_requests(tmp_path: Path) -> None:
    """An empty run has no timeline to draw and does not break the page."""
    document = kept_document("fcfs", 6.0, 0, 4096)
    document["requests"] = []
    document["timeline"] = {name: [] for name in COLUMNS} | {"capacity_tokens": None}
    page = report_page.page_of(material.load([kept_file(tmp_path, document)]))
    assert "Inside fcfs" in page
    assert "The KV cache" not in page


def test_the_waterfall_shows_the_worst_stretch() -> None:
    """More requests than rows: the consecutive arrivals with most broken promises are drawn."""
    requests = KeptRun.parse(kept_document("fcfs", 20.0, 1, 4096, num=400)).requests
    shown = run_figures.worst_stretch(requests)
    rows = sorted(requests, key=lambda r: r.arrived_at_s)
    broken = [not r.attained for r in rows]
    most = max(sum(broken[i : i + 150]) for i in range(len(rows) - 149))
    assert len(shown) == 150
    assert sum(not r.attained for r in shown) == most
    start = rows.index(shown[0])
    assert rows[start : start + 150] == shown


def test_kv_stack_reaches_the_capacity() -> None:
    """Held, reserved and free add up to the capacity at every point; lent comes on top."""
    timeline = KeptRun.parse(kept_document("fcfs", 20.0, 0, 4096)).timeline
    assert timeline.lent_tokens.max() > 0
    layers = {trace.name: np.array(trace.y) for trace in run_figures.kv_over_time(timeline).data}
    lent = layers.pop("lent: reserved, yet in use")
    assert sum(layers.values()) == pytest.approx(np.full(len(lent), CAPACITY_TOKENS))
    assert lent.max() > 0


def test_long_timelines_are_thinned_without_hiding_overruns() -> None:
    """Of 10,000 steps the one that broke its promise is still drawn, and points stay few."""
    n = 10_000
    begins_s = np.arange(n) * 0.01
    spans_s = np.full(n, 0.009)
    spans_s[4321] = 0.02
    zeros = np.zeros(n)
    timeline = Timeline(
        begins_s, begins_s + spans_s, zeros + 0.009, zeros + 0.01, *(zeros,) * 6, capacity_tokens=9
    )
    figure = run_figures.steps_over_time(timeline)
    over = next(t for t in figure.data if t.name == "step beyond its promise")
    assert list(over.x) == [43.21]
    assert list(over.y) == [pytest.approx(20.0)]
    assert max(len(t.x) for t in figure.data) <= run_figures.MAX_POINTS
    means = run_figures.Bins.of(timeline).mean(spans_s, spans_s)
    assert len(means) <= run_figures.MAX_POINTS


def test_labels_name_what_differs() -> None:
    """Runs on two engines are two lines; a setting that never differs is not in the label."""
    runs = [{"policy": "fcfs", "engine": e, "workload": "w"} for e in ("sim", "vllm")]
    labels = series.Labels(runs)
    assert [labels.of(run) for run in runs] == ["fcfs · sim", "fcfs · vllm"]
    assert series.Labels(runs[:1]).of(runs[0]) == "fcfs"


def test_settings_are_named_only_where_they_differ_at_one_load() -> None:
    """An ablation is two lines; a baseline tuned for each load stays one."""
    tuned = [{"policy": "p", "rate_rps": r, "settings": s} for r, s in ((1, "a"), (2, "b"))]
    labels = series.Labels(tuned)
    assert {labels.of(run) for run in tuned} == {"p"}
    ablation = [{"policy": "p", "rate_rps": 1, "settings": s} for s in ("{}", "off")]
    labels = series.Labels(ablation)
    assert [labels.of(run) for run in ablation] == ["p", "p off"]


def test_a_tuned_baseline_keeps_its_name_inside(tmp_path: Path) -> None:
    """The kept run of a chosen setting is drawn under each name it was chosen for, others not."""
    chosen, other = (kept_document("stock", 6.0, 0, budget) for budget in (4096, 160))
    kept_file(tmp_path, chosen, "a"), kept_file(tmp_path, other, "b")
    ways = [{**chosen["run"], "policy": name} for name in ("stock-static", "stock-hindsight")]
    (tmp_path / "out.json").write_text(json.dumps({"schema": 1, "runs": ways}))
    (tmp_path / "capacity.json").write_text(json.dumps({"schema": 1, "capacities": []}))
    loaded = material.load([tmp_path, tmp_path / "a.run.json.gz"])
    assert [f.run["policy"] for f in loaded.kept] == ["stock-static", "stock-hindsight"]
    assert len(loaded.runs) == 2
    assert loaded.num_left_out == 1


def test_colours() -> None:
    """Our policy always looks the same, and the others differ from it and from each other."""
    found = theme.colours(["fcfs", "headway", "sarathi"])
    assert found["headway"] == theme.OUR_COLOUR
    assert len(set(found.values())) == 3


def test_the_best_of_each_load_is_bold() -> None:
    """Bold is the greatest share and the shortest wait, load by load, never for a lone policy."""
    runs = [
        {"policy": p, "rate_rps": 1.0, "attainment": a, "ttft_s": {"p50": t}}
        for p, a, t in (("a", 0.5, 2.0), ("b", 0.75, 3.0))
    ]
    groups = series.groups_of(runs, series.Labels(runs))
    assert re.findall(r'class="best">([^<]*)<', tables.key_figures(groups)) == ["2.00 s", "75"]
    assert 'class="best"' not in tables.key_figures(groups[:1])


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "holds no JSON"),
        ("[]", "neither a summary nor a kept run"),
        ('{"schema": 2, "runs": []}', "neither a summary nor a kept run"),
        ('{"schema": 1}', "has no list of runs"),
        ('{"schema": 1, "runs": []}', "There is no run"),
        ('{"schema": 1, "runs": [{}]}', "the name of its policy"),
        ('{"schema": 1, "runs": [{"policy": "p", "seed": "x"}]}', "seed of a run must be a number"),
        ('{"schema": 1, "runs": [{"policy": "p", "seed": NaN}]}', "seed of a run must be a number"),
        ('{"schema": 1, "runs": [{"policy": "p", "ttft_s": 1}]}', "ttft_s of a run must be an"),
        ('{"schema": 1, "run": {}, "timeline": {}, "requests": []}', "the name of its policy"),
    ],
)  # fmt: skip
def test_files_that_are_something_else(tmp_path: Path, text: str, sentence: str) -> None:
    """Each mistake in a file is one sentence that names the file or the field."""
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(sentence)):
        material.load([path])


# -- chances told --------------------------------------------------------------------------------


def told_run(policy: str, *deciles: tuple[float, float, int]) -> dict[str, Any]:
    """Return a summary with these deciles."""
    run = {"policy": policy, "rate_rps": 4.0, "seed": 0, "num_requests": 300, "attainment": 0.9}
    rows = [dict(zip(("told", "kept", "num"), row, strict=True)) for row in deciles]
    return {**run, "calibration": rows}


def test_the_reliability_diagram_shows_told_against_kept() -> None:
    """Of each policy that told something, hollow where too few; what is furthest off is said."""
    runs = [told_run("headway", (0.95, 0.93, 200), (0.4, 0.9, 20)), told_run("fcfs")]
    groups = series.groups_of(runs, series.Labels(runs))
    figure = reliability.reliability(groups)
    assert figure is not None
    assert [trace.name for trace in figure.data] == ["as told", "headway"]
    points = figure.data[1]
    assert (list(points.x), list(points.y)) == ([95.0, 40.0], [93.0, 90.0])
    assert points.marker.size[0] > points.marker.size[1]
    assert points.marker.color[0] != points.marker.color[1]
    assert "off by 2.0 points" in reliability.sentence(groups)
    page = report_page.page_of(material.Material(runs))
    assert "What was expected, and what came of it" in page


def test_without_chances_there_is_no_diagram() -> None:
    """Runs of other policies, and of before there were any."""
    runs = [told_run("fcfs"), {"policy": "headway", "rate_rps": 4.0}]
    assert reliability.reliability(series.groups_of(runs, series.Labels(runs))) is None
    assert "What was expected, and" not in report_page.page_of(material.Material(runs))


@pytest.mark.parametrize("deciles", ["[1]", "{}x", '[{"told": 0.5, "kept": "all", "num": 3}]'])
def test_deciles_that_are_something_else(tmp_path: Path, deciles: str) -> None:
    """One sentence, no traceback."""
    text = f'{{"schema": 1, "runs": [{{"policy": "headway", "calibration": {deciles}}}]}}'
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(UserError):
        material.load([tmp_path / "runs.json"])
