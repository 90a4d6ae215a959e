"""What ``/metrics`` says, and that dashboards, alerts and docs ask for what it says."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from told import Kept

import headway
from headway import registry
from headway.engines.journal import Journal
from headway.engines.vllm.watch import Watch
from headway.metrics.catalogue import METRICS
from headway.metrics.prometheus import exposition, reference
from headway.metrics.queries import QUERIES
from headway.metrics.tally import Histogram, Tallies, combine, quantile
from headway.policy.view import EngineView
from headway.slo import Slo

OPS = Path(headway.__file__).parent / "ops"
DOCS = Path(__file__).parents[2] / "docs"

VIEW = EngineView(
    num_total_blocks=64, num_free_blocks=64, block_size_tokens=4, max_num_running=8,
    max_step_tokens=64,
)  # fmt: skip


def served(make_engine: Any) -> tuple[Watch, Kept]:
    """A small engine that served two kept promises, a broken one and one without."""
    kept = Kept()
    core = registry.build("slack")
    watch = Watch(core, kept)  # type: ignore[arg-type]
    engine = make_engine(Journal(core, watch))
    engine.arrive("kept", 8, 5, slo=Slo(ttft_s=9.0, tbt_s=9.0, class_name="chat"))
    engine.arrive("broken", 40, 5, slo=Slo(ttft_s=1e-6, class_name="chat"))
    engine.arrive("batch", 8, 3, slo=Slo(jct_s=9.0, class_name="batch"))
    engine.arrive("plain", 8, 3)
    while engine.core.live.requests:
        engine.step()
    return watch, kept


@pytest.fixture
def told(fake_engine: Any) -> tuple[Watch, Kept]:
    return served(fake_engine)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            found[sample.name, frozenset(sample.labels.items())] = sample.value
    return found


def value(text: bytes, name: str, **labels: str) -> float:
    return samples(text)[name, frozenset({"engine": "0", **labels}.items())]


def test_it_counts_what_happened(told: tuple[Watch, Kept]) -> None:
    """Offered, ended, promised and attained, by class; no attainment without a promise."""
    text = exposition({"0": told[1].messages[-1]})
    assert value(text, "headway_requests_offered_total", slo_class="chat") == 2
    assert value(text, "headway_requests_promised_total", slo_class="chat") == 2
    assert value(text, "headway_requests_attained_total", slo_class="chat") == 1
    assert value(text, "headway_requests_attained_total", slo_class="batch") == 1
    ended = "headway_requests_ended_total"
    assert value(text, ended, slo_class="none", outcome="finished") == 1
    assert value(text, "headway_attained_tokens_total", slo_class="chat") == 5
    assert value(text, "headway_output_tokens_total") == 5 + 5 + 3 + 3
    assert value(text, "headway_messages_dropped_total", reason="reader_slow") == 2
    assert ("headway_requests_attained_total", frozenset({("engine", "0"), ("slo_class", "none")})
            ) not in samples(text)  # fmt: skip


def test_the_last_word_before_idle_says_that_nobody_is_left(told: tuple[Watch, Kept]) -> None:
    """One snapshot is marked as the last: the one that counts everybody's end."""
    (last,) = told[1].last
    assert last == told[1].messages[-1]
    assert (last["now"]["running"], last["now"]["waiting"]) == (0, 0)
    assert sum(sum(c["outcomes"].values()) for c in last["counts"]["classes"].values()) == 4


def test_the_load_is_told_while_there_is_any(told: tuple[Watch, Kept]) -> None:
    """Before the first step there is some; in the end nobody is left."""
    first, last = told[1].messages[0], told[1].messages[-1]
    assert value(exposition({"0": first}), "headway_pressure") > 0
    assert value(exposition({"0": last}), "headway_pressure") == 0
    first["now"]["load"]["prefill_backlog_s"] = 1.5
    assert value(exposition({"0": first}), "headway_prefill_backlog_seconds") == 1.5


def test_recording_and_shadow_show_where_they_are_switched_on(told: tuple[Watch, Kept]) -> None:
    """Without them no row; with them lines by result, and the share each policy would keep."""
    plain = told[1].messages[-1]
    assert not any(name.startswith(("headway_recorded", "headway_shadow"))
                   for name, _ in samples(exposition({"0": plain})))  # fmt: skip
    share = {"policy": "fcfs", "role": "shadow", "attainment": 0.75}
    counts = {**plain["counts"], "recorded": {"kept": 9, "dropped": 2}}
    found = {"attainment": [share], "num_promised": 8, "cpu_s": 1.5}
    text = exposition({"0": {**plain, "counts": counts, "shadow": found}})
    assert value(text, "headway_recorded_lines_total", result="dropped") == 2
    assert value(text, "headway_shadow_attainment", policy="fcfs", role="shadow") == 0.75
    assert value(text, "headway_shadow_requests") == 8
    assert value(text, "headway_shadow_cpu_seconds_total") == 1.5


def test_causes_add_up_to_the_lateness(told: tuple[Watch, Kept]) -> None:
    """Of the one broken promise: by its story, and by the counters."""
    (broken,) = [m for m in told[1].messages if m["kind"] == "broken"]
    assert broken["id"] == "broken"
    late_s = broken["ttft_s"] - 1e-6
    assert broken["late_s"] == pytest.approx(late_s)
    assert math.fsum(broken["by_cause_s"].values()) == pytest.approx(late_s)
    text = exposition({"0": told[1].messages[-1]})
    total = sum(v for (name, _), v in samples(text).items()
                if name == "headway_lateness_seconds_total")  # fmt: skip
    assert total == pytest.approx(late_s)
    assert broken["story"][0] == [0.0, "arrived"]


def test_histograms_are_cumulative_and_complete(told: tuple[Watch, Kept]) -> None:
    """Each first token once, each later one a gap; +Inf holds all."""
    text = exposition({"0": told[1].messages[-1]})
    assert value(text, "headway_ttft_seconds_count", slo_class="chat") == 2
    assert value(text, "headway_token_gap_seconds_count", slo_class="chat") == 8
    assert value(text, "headway_token_gap_seconds_bucket", slo_class="chat", le="+Inf") == 8
    rising: dict[Any, list[tuple[float, float]]] = {}
    for (name, labels), count in samples(text).items():
        if name.endswith("_bucket"):
            key = (name, frozenset(x for x in labels if x[0] != "le"))
            rising.setdefault(key, []).append((float(dict(labels)["le"]), count))
    assert rising
    for buckets in rising.values():
        counts = [count for _, count in sorted(buckets)]
        assert counts == sorted(counts)


def test_the_kv_cache_is_split_without_a_rest(told: tuple[Watch, Kept]) -> None:
    """Held, reserved and free make up the cache at every snapshot."""
    for message in told[1].messages:
        if message["kind"] == "counts":
            kv = message["now"]["kv"]
            assert kv["held"] + kv["reserved"] + kv["free"] == 64 * 4
            assert min(kv.values()) >= 0


def test_several_engines_are_told_apart_and_added_up(told: tuple[Watch, Kept]) -> None:
    """A label for each; counts of both together are twice one's."""
    message = told[1].messages[-1]
    text = exposition({"0": message, "1": message})
    both = [v for (n, _), v in samples(text).items() if n == "headway_output_tokens_total"]
    assert both == [16, 16]
    double = combine(message["counts"], message["counts"])
    assert double["tokens"]["output"] == 32
    assert combine(double, message["counts"], -1) == message["counts"]


def test_no_message_holds_a_prompt(told: tuple[Watch, Kept]) -> None:
    """What leaves the process is numbers, ids, classes, outcomes and the core's own words."""
    allowed = {
        "schema", "kind", "id", "class", "outcome", "promise", "ended_at_s", "lived_s", "ttft_s",
        "jct_s", "tpot_s", "pause_s", "broke", "num_gaps", "num_late_gaps", "num_prompt_tokens",
        "num_output_tokens",
        "num_preemptions", "late_s", "by_cause_s", "story", "engine", "unix_s",
    }  # fmt: skip
    for message in told[1].messages:
        if message["kind"] == "broken":
            assert set(message) == allowed


@pytest.mark.parametrize("described", METRICS, ids=lambda d: d.name)
def test_names_follow_the_conventions(described: Any) -> None:
    """Our prefix, base units, _total on counters and on nothing else."""
    assert re.fullmatch(r"headway_[a-z_]+", described.name)
    assert described.name.endswith("_total") == (described.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|percent|kb|mb)(_|$)", described.name)
    assert described.help.endswith(".") or ":" in described.help
    if described.kind == "histogram":
        assert list(described.bounds) == sorted(set(described.bounds))


def test_the_reference_is_the_codes_own() -> None:
    """docs/reference/metrics.md is what the module prints."""
    assert (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8") == reference()


def test_a_quantile_lies_in_its_bucket() -> None:
    """Straight within a bucket; beyond the last bound it is that bound."""
    histogram = Histogram((1.0, 2.0, 4.0))
    assert quantile(histogram.bounds, histogram.counts, 0.5) is None
    for given in (0.5, 1.5, 1.5, 3.0):
        histogram.add(given)
    assert quantile(histogram.bounds, histogram.counts, 0.5) == pytest.approx(1.5)
    histogram.add(100.0, times=96)
    assert quantile(histogram.bounds, histogram.counts, 0.5) == 4.0


def test_the_number_of_classes_is_bounded() -> None:
    """The sixty-fifth class and all later ones are counted together."""
    tallies = Tallies()
    for number in range(100):
        tallies.of(f"c{number}").offered += 1
    assert len(tallies.by_class) == 65
    assert tallies.by_class["other"].offered == 36


# -- dashboards and alerts ---------------------------------------------------------------------


def expressions() -> list[str]:
    board = json.loads((OPS / "grafana.json").read_text(encoding="utf-8"))
    found = [t["expr"] for panel in board["panels"] for t in panel["targets"]]
    rules = yaml.safe_load((OPS / "alerts.yml").read_text(encoding="utf-8"))
    found += [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    return found + list(QUERIES.values())


def test_every_query_asks_for_a_metric_there_is() -> None:
    """By name, suffix and label."""
    known = {}
    for m in METRICS:
        names = [m.name]
        if m.kind == "histogram":
            names = [f"{m.name}_{end}" for end in ("bucket", "sum", "count")]
        known.update({name: {"engine", "le", *m.labels} for name in names})
    asked = set()
    for expression in expressions():
        for name, labels in re.findall(r"(headway_\w+)(\{[^}]*\})?", expression):
            asked.add(name)
            assert name in known, expression
            assert set(re.findall(r"(\w+)=", labels)) <= known[name], expression
    missing = {m.name for m in METRICS if not any(a.startswith(m.name) for a in asked)}
    assert missing == {
        "headway_requests_offered_total",
        "headway_requests_late_total",
        "headway_recorded_lines_total",
        "headway_length_coverage_target",
        "headway_chance_calibration_error",
        "headway_shadow_attainment",
        "headway_shadow_requests",
        "headway_shadow_cpu_seconds_total",
    }


def test_promtool_accepts_rules_and_metrics(told: tuple[Watch, Kept]) -> None:
    """Prometheus' own checker reads the rules, sees them fire when they should, and has nothing to
    say about the names."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian package prometheus)")
    rules = subprocess.run(
        [promtool, "check", "rules", str(OPS / "alerts.yml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert rules.returncode == 0, rules.stderr
    fired = subprocess.run(
        [promtool, "test", "rules", str(Path(__file__).with_name("alerts.test.yml"))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert fired.returncode == 0, fired.stdout + fired.stderr
    metrics = subprocess.run(
        [promtool, "check", "metrics"], input=exposition({"0": told[1].messages[-1]}),
        capture_output=True, check=False,
    )  # fmt: skip
    assert (metrics.returncode, metrics.stderr) == (0, b"")
