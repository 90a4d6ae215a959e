"""Error budgets: what is counted, what readers make of it, and what outlives the process."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from told import counts, serve_one

from headway.metrics.aims_rows import budget_of
from headway.metrics.budgets import MOST_GROUPS, WINDOWS, ErrorBudgets
from headway.metrics.prometheus import exposition
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.policy.events import Arrived, Finished
from headway.policy.live_requests import LiveRequests
from headway.slo import Slo

CODE = Slo(ttft_s=1.0, class_name="code", target=0.9, tenant="acme", tenant_target=0.8)
LIVE = LiveRequests()


def gauges(message: dict[str, Any], name: str) -> dict[tuple[str, ...], float]:
    """Return the samples of one metric, by its labels' values."""
    text = exposition({"0": message}).decode()
    return {
        tuple(v for k, v in sorted(sample.labels.items()) if k != "engine"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def served(num_kept: int, num_broken: int, slo: Slo = CODE, at_s: float = 0.0) -> SchedulerCounts:
    observed = SchedulerCounts()
    for i in range(num_kept + num_broken):
        serve_one(observed, f"r{i}", slo, 0.5 if i < num_kept else 1.5, at_s + 2.0 * i)
    return observed


def test_kept_and_broken_promises_spend_the_budget() -> None:
    """Of ten one broken: all of a budget of 0.1, half of one of 0.2; a class without has none."""
    observed = served(9, 1)
    serve_one(observed, "plain", Slo(ttft_s=1.0, class_name="chat"), 9.0, 40.0)
    message = counts(observed, 60.0)
    assert gauges(message, "headway_slo_target") == {("code",): 0.9}
    left = gauges(message, "headway_error_budget_left")
    assert left == {("code",): pytest.approx(0.0)}
    rates = gauges(message, "headway_error_budget_burn_rate")
    assert rates == {("code", w): pytest.approx(1.0) for w in ("5m", "1h", "6h")}
    assert gauges(message, "headway_tenant_slo_target") == {("acme",): 0.8}
    tenants = gauges(message, "headway_tenant_error_budget_left")
    assert tenants == {("acme",): pytest.approx(0.5)}


def test_refused_and_aborted_requests_are_broken_promises() -> None:
    """Whatever their outcome: what attainment is a share of. Overdrawn is below zero."""
    observed = SchedulerCounts()
    for i, reason in enumerate(("refused", "aborted", "rejected", "error")):
        event = Arrived(0.0, f"r{i}", 0.0, 10, 9, CODE)
        observed.arrived(event, 5)
        observed.finished(Finished(1.0, f"r{i}", reason), event.request())
    told = observed.snapshot(LIVE, 1.0)["budgets"]["class"]["code"]
    assert told["windows"]["28d"] == [4, 4]
    left = gauges(counts(observed, 1.0), "headway_error_budget_left")
    assert left == {("code",): pytest.approx(-9.0)}


def test_before_anything_ended_all_is_left() -> None:
    """A class is told as soon as a request of it arrives."""
    observed = SchedulerCounts()
    observed.arrived(Arrived(0.0, "a", 0.0, 10, 9, CODE), 5)
    message = counts(observed, 0.0)
    assert gauges(message, "headway_error_budget_left") == {("code",): 1.0}
    assert set(gauges(message, "headway_error_budget_burn_rate").values()) == {0.0}


def test_requests_without_a_promise_spend_nothing() -> None:
    """A class may have a target and requests in it none of its promises."""
    observed = served(3, 0, Slo(class_name="code", target=0.9))
    assert observed.snapshot(LIVE, 9.0)["budgets"]["class"]["code"]["windows"]["28d"] == [0, 0]


def test_the_newest_target_counts() -> None:
    """A file read anew: another target, none (not told, but counted on), and one again."""
    budgets = ErrorBudgets()
    for target, told in ((0.9, 0.9), (0.99, 0.99), (None, None), (0.5, 0.5)):
        budgets.aim("class", "code", target)
        budgets.ended("class", "code", 10.0, is_kept=True)
        assert budgets.snapshot(10.0)["class"].get("code", {}).get("target") == told
    assert budgets.snapshot(10.0)["class"]["code"]["windows"]["5m"] == [4, 0]


def test_a_group_without_a_target_is_not_counted() -> None:
    """Nothing is kept of it, however many there are."""
    budgets = ErrorBudgets()
    for i in range(1000):
        budgets.aim("tenant", f"t{i}", None)
        budgets.ended("tenant", f"t{i}", 1.0, is_kept=False)
    assert budgets.state(1.0)["groups"] == []


def test_the_number_of_groups_is_bounded() -> None:
    """Who ended a promise last stays; classes do not give way to tenants."""
    budgets = ErrorBudgets()
    budgets.aim("class", "code", 0.9)
    for i in range(10 * MOST_GROUPS):
        budgets.aim("tenant", f"t{i}", 0.9)
        budgets.ended("tenant", f"t{i}", float(i), is_kept=True)
        budgets.ended("tenant", "t0", float(i), is_kept=True)
    told = budgets.snapshot(0.0)
    assert len(told["tenant"]) == MOST_GROUPS
    assert {"t0", f"t{10 * MOST_GROUPS - 1}"} <= told["tenant"].keys()
    assert list(told["class"]) == ["code"]


def test_four_weeks_of_traffic_take_a_bounded_room() -> None:
    """A promise a minute for forty days: as many counts as there are minutes and hours to keep."""
    budgets = ErrorBudgets()
    budgets.aim("class", "code", 0.9)
    for minute in range(40 * 24 * 60):
        budgets.ended("class", "code", 60.0 * minute, is_kept=minute % 2 == 0)
    (group,) = budgets.state(40 * 86_400.0)["groups"]
    assert (len(group["minutes"]), len(group["hours"])) == (360, 672)
    told = budgets.snapshot(40 * 86_400.0)["class"]["code"]["windows"]
    assert told["28d"] == [28 * 24 * 60, 14 * 24 * 60]


# -- an idle server, and several ---------------------------------------------------------------


@pytest.mark.parametrize(("age_s", "burning"), [(10.0, 3), (301.0, 2), (3601.0, 1), (1e5, 0)])
def test_a_window_that_has_passed_since_the_last_word_is_empty(age_s: float, burning: int) -> None:
    """An idle scheduler says nothing more, and its last burn rate does not stay for ever."""
    message = counts(served(0, 5), 20.0) | {"age_s": age_s}
    rates = gauges(message, "headway_error_budget_burn_rate")
    assert sum(rate > 0 for rate in rates.values()) == burning
    assert gauges(message, "headway_error_budget_left") == {("code",): pytest.approx(-9.0)}


def test_several_schedulers_have_one_budget() -> None:
    """Counts are added before they are divided; the newest word on the target counts."""
    newer = Slo(ttft_s=1.0, class_name="code", target=0.75)
    one = counts(served(1, 1), 100.0, "0")
    other = counts(served(6, 0, newer), 101.0, "1")
    found = budget_of({"1": other, "0": one}, "class", "code", 102.0)
    assert found is not None
    assert found["target"] == 0.75
    assert found["budget_left"] == pytest.approx(1 - (1 / 8) / 0.25)
    assert budget_of({"0": one}, "class", "chat", 102.0) is None


def test_multipliers_are_passed_on() -> None:
    """By group, as the scheduler names them; nothing of it without any."""
    observed = SchedulerCounts()
    message = {**observed.snapshot(LIVE, 0.0, {"class code": 1.5}), "engine": "0", "unix_s": 0.0}
    assert gauges(message, "headway_target_multiplier") == {("class code",): 1.5}
    assert gauges(counts(observed, 0.0), "headway_target_multiplier") == {}


# -- what outlives the process -----------------------------------------------------------------


def test_a_clock_that_went_back_loses_nothing() -> None:
    """What was counted in what is now the future counts as now."""
    before, after = ErrorBudgets(), ErrorBudgets()
    before.aim("class", "code", 0.9)
    for at_s in (1e6, 2e6):
        before.ended("class", "code", at_s, is_kept=False)
    after.restore(before.state(2e6), 1.5e6)
    assert after.snapshot(1.5e6)["class"]["code"]["windows"]["28d"] == [2, 2]
    after.ended("class", "code", 1.5e6 + 1, is_kept=True)
    assert after.snapshot(1.5e6 + 1)["class"]["code"]["windows"]["5m"][0] >= 1


GOOD = {"kind": "class", "name": "code", "target": 0.9, "minutes": [], "hours": [[0.0, 2, 1]]}


@pytest.mark.parametrize(
    "changed",
    [
        {"kind": "user"}, {"kind": []}, {"target": "0.9"}, {"target": 1.0}, {"target": True},
        {"hours": [[0.0, 1, 2]]}, {"hours": [[0.0, 1.5, 1]]}, {"hours": [[0.0, -1, -1]]},
        {"hours": [[9.0, 1, 0], [1.0, 1, 0]]}, {"hours": [[float("nan"), 1, 0]]}, {"hours": 3},
        {"hours": [["0", 1, 0]]}, {"hours": [[0.0, 1]]}, {"minutes": None},
        {"hours": [[float("inf"), 1, 0]]}, {"hours": [[-float("inf"), 1, 0]]},
    ],
)  # fmt: skip
def test_what_is_no_state_is_refused_whole(changed: dict[str, Any]) -> None:
    """A ValueError, and what was counted before is as it was."""
    budgets = ErrorBudgets()
    budgets.aim("class", "chat", 0.5)
    before = budgets.state(0.0)
    with pytest.raises(ValueError, match=r"."):
        budgets.restore({"schema": 1, "groups": [GOOD, GOOD | changed]}, 0.0)
    assert budgets.state(0.0) == before
    budgets.restore({"schema": 1, "groups": [GOOD]}, 0.0)
    assert budgets.snapshot(0.0)["class"]["code"]["windows"]["28d"] == [2, 1]


@pytest.mark.parametrize("state", [None, [], {}, {"schema": 2, "groups": []}, {"schema": 1}, "x"])
def test_another_document_is_refused(state: Any) -> None:
    """Whatever JSON it is."""
    with pytest.raises(ValueError, match=r"."):
        ErrorBudgets().restore(state, 0.0)


def test_windows_are_named_by_their_length() -> None:
    """A name says how many seconds it stands for."""
    units = {"m": 60, "h": 3600, "d": 86_400}
    assert all(int(n[:-1]) * units[n[-1]] == spans[0] for n, spans in WINDOWS.items())
