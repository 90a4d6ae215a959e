"""The report's tables of targets and tenants."""

from __future__ import annotations

import re

from headway.metrics.kept import KeptRequest
from headway.slo import Slo
from headway.web import aims_tables, report_page
from headway.web.aims_tables import MOST_TENANTS
from headway.web.page import Page


def request(number: int, slo: Slo, *, is_kept: bool = True) -> KeptRequest:
    outcome = "finished" if is_kept else "refused"
    emitted_at_s = (number + 1.0, number + 2.0) if is_kept else ()
    return KeptRequest(f"r{number}", slo, float(number), emitted_at_s, outcome, is_kept, (), 10)


def rows(table: str | None) -> list[list[str]]:
    """Return the cells of a table, line by line, its head left out."""
    assert table is not None
    lines = re.findall(r"<tr>(.*?)</tr>", table)[1:]
    return [re.findall(r"<td>(.*?)</td>", line) for line in lines]


CODE = Slo(ttft_s=1.0, class_name="code", target=0.8, tenant="<b>", tenant_target=0.9)
PLAIN = Slo(ttft_s=1.0, class_name="chat")


def test_targets_are_compared_with_what_was_kept() -> None:
    """Of ten one broken: half of a budget of 0.2, all of one of 0.1; no line for who has none."""
    requests = [request(i, CODE, is_kept=i > 0) for i in range(10)]
    requests += [request(99, PLAIN, is_kept=False)]
    assert rows(aims_tables.targets({"headway": requests})) == [
        ["headway", "class code", "80", "10", "90.0", "50"],
        ["headway", "tenant &lt;b&gt;", "90", "10", "90.0", "100"],
    ]


def test_the_newest_target_of_a_run_counts() -> None:
    """In the order of arrival; requests of the class without a promise spend nothing."""
    older = request(0, Slo(ttft_s=1.0, class_name="code", target=0.5), is_kept=False)
    newer = request(1, Slo(class_name="code", target=0.99), is_kept=False)
    assert rows(aims_tables.targets({"a": [newer, older]})) == [
        ["a", "class code", "99", "1", "0.0", "10,000"]
    ]


def test_tenants_are_shown_where_there_are_several() -> None:
    """The same lines for every policy, by requests; tokens of those that got an answer."""
    requests = [request(i, CODE) for i in range(3)] + [request(3, PLAIN, is_kept=False)]
    shown = rows(aims_tables.tenants({"a": requests, "b": requests[:1]}))
    assert shown == [
        ["a", "&lt;b&gt;", "3", "3", "100.0", "30", "6"],
        ["a", "no tenant", "1", "1", "0.0", "0", "0"],
        ["b", "&lt;b&gt;", "1", "1", "100.0", "10", "2"],
    ]
    assert aims_tables.tenants({"a": requests[:3]}) is None


def test_beyond_fifty_tenants_the_rest_is_one_line() -> None:
    """Those with the fewest requests."""
    requests = [request(i, Slo(tenant=f"t{min(i % 100, 60)}")) for i in range(200)]
    shown = rows(aims_tables.tenants({"a": requests}))
    assert len(shown) == MOST_TENANTS + 1
    assert shown[0][1:5] == ["t60", "80", "0", "–"]
    assert shown[-1][1:3] == ["11 others", "22"]


def test_a_report_without_targets_and_tenants_says_nothing_of_them() -> None:
    """No section at all; with them one each."""
    page = Page()
    report_page._aims(page, {"a": [request(0, PLAIN)]}, "")
    assert page.parts == []
    report_page._aims(page, {"a": [request(0, PLAIN), request(1, CODE)]}, "")
    assert re.findall(r"<h2>(.*?)</h2>", "".join(page.parts)) == ["Targets", "Tenants"]
