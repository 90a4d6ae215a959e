"""Everything visible, on a real server: the page in a browser, Prometheus, the two commands."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from browser import browse, looks_drawn

import headway
from headway.bench.server import LiveServer, free_port
from headway.cli.running_server import AWAITED
from headway.metrics.queries import QUERIES

pytestmark = pytest.mark.live

OPS = Path(headway.__file__).parent / "ops"
LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SECRET = "zanzibar"
"""A word of a prompt, which must be seen nowhere."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One server that served four kept promises and two that nobody could keep.

    It is told that a proxy puts /llm in front of its paths, and takes them with it and without.
    """
    folder: Path = tmp_path_factory.mktemp("visible")
    (folder / "slo.toml").write_text("[classes.chat]\nttft_s = 60\ntbt_s = 10\n")
    args = ["smollm2", "--slo", str(folder / "slo.toml"), "--page", "--root-path", "/llm"]
    with LiveServer(args, folder / "server.log") as running:
        for i in range(4):
            ask(running, {"slo_class": "chat"}, f"{i}: What is {SECRET}?")
        for i in range(2):
            ask(running, {"slo_ttft_ms": 1}, f"{i}: Where is {SECRET}?")
        yield running


def ask(server: LiveServer, xargs: dict[str, Any], text: str, **more: Any) -> str:
    """Return the id of a short answer."""
    body = {"model": "smollm2", "max_tokens": 8, "vllm_xargs": xargs,
            "messages": [{"role": "user", "content": text}], **more}  # fmt: skip
    request = urllib.request.Request(
        server.url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with LOCAL.open(request, timeout=300) as answer:
        name: str = json.load(answer)["id"]
    return name


def get(url: str) -> str:
    with LOCAL.open(url, timeout=30) as answer:
        text: str = answer.read().decode()
    return text


def wait_for(found: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Return what *found* returns once it is true."""
    deadline_s = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.2)
    return value


def state(server: LiveServer) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(get(server.url + "/headway/state"))
    return document


def test_the_state_counts_what_was_served(server: LiveServer) -> None:
    """Four kept, two broken; and nothing of what was asked."""
    text = get(server.url + "/headway/state") + get(server.url + "/headway/broken?worst=10")
    rows = {row["name"]: row for row in state(server)["classes"]}
    assert (rows["chat"]["attained"], rows["chat"]["promised"]) == (4, 4)
    assert (rows["custom"]["attained"], rows["custom"]["promised"]) == (0, 2)
    assert SECRET not in text


def test_metrics_come_with_vllms(server: LiveServer) -> None:
    """One scrape, both families, no prompt."""
    text = get(server.url + "/metrics")
    assert "vllm:num_requests_running" in text
    assert 'headway_requests_attained_total{engine="0",slo_class="chat"} 4.0' in text
    assert SECRET not in text


def headway_command(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "headway", *arguments],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_explain_and_top_answer(server: LiveServer) -> None:
    """By the id that the client got; causes add up to the lateness."""
    name = ask(server, {"slo_ttft_ms": 1}, "Hello")
    # It comes from the engine's process by itself.
    told, *_ = wait_for(lambda: json.loads(get(f"{server.url}/headway/broken?id={name}"))["broken"])
    assert told["late_s"] == pytest.approx(told["ttft_s"] - 0.001)
    assert sum(told["by_cause_s"].values()) == pytest.approx(told["late_s"])
    text = headway_command("explain", name, "--url", server.url)
    assert name in text
    assert "first token within 1 ms" in text
    assert "custom" in headway_command("top", "--once", "--url", server.url)


def test_who_is_late_is_told_while_it_is_late(server: LiveServer) -> None:
    """A long answer, due at once: the page's figures, top and explain know of it before its end."""
    with ThreadPoolExecutor(1) as clients:
        slow = clients.submit(
            ask, server, {"slo_jct_ms": 1}, "Hello", max_tokens=400, ignore_eos=True
        )
        (row, *_) = wait_for(lambda: state(server)["late"])
        top = headway_command("top", "--once", "--url", server.url)
        text = headway_command("explain", row["id"], "--url", server.url)
        assert not slow.done(), "all this was said while it was late"
        name = slow.result()
    assert row["id"].startswith(name)
    assert (row["breaks"], row["class"]) == ("jct", "custom")
    assert "Late now: 1" in top
    assert f"its {AWAITED['jct']} is" in text
    assert wait_for(lambda: state(server)["late"] == [])


def test_every_answer_of_one_request_has_its_story(server: LiveServer) -> None:
    """With n = 2 two promises are broken, and found by the one id that the client got."""
    name = ask(server, {"slo_ttft_ms": 1}, "Hello", n=2)

    def broken() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(get(f"{server.url}/headway/broken?id={name}"))[
            "broken"
        ]
        return found

    found = wait_for(lambda: len(broken()) > 1 and broken())  # They may end in different steps.
    assert sorted(told["id"].partition("_")[0] for told in found) == ["0", "1"]


async def test_a_browser_shows_the_page(server: LiveServer, tmp_path: Path) -> None:
    """In headless Chromium, behind a prefix, its scripts run under their policy, the figures are
    there, and a click on a line opens its story, which has an address."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian package chromium)")
    async with browse(chromium, tmp_path) as page:
        await page.open(server.url + "/llm/headway")
        await page.wait_for("document.querySelector('#lead').innerText.includes('were kept')")
        text = await page.text()
        for words in ("first token within 60 s, then", "4 of 4 promises kept", "half is right"):
            assert words in text
        assert "waiting for a turn" in text or "prompt computed in pieces" in text
        assert await page.value("document.querySelector('#trouble').hidden")
        assert SECRET not in await page.value("document.documentElement.outerHTML")

        name = await page.text("#broken tbody tr td")
        await page.click("#broken tbody tr td")
        await page.wait_for("document.querySelector('#story li')")
        story = await page.text("#story")
        assert name in story
        assert "arrived" in story
        looks_drawn(await page.screenshot(), tmp_path / "page.png")

        address = await page.value("location.href")
        await page.open("about:blank")
        await page.open(address)
        await page.wait_for("document.querySelector('#story h3')")
        assert await page.text("#story h3") == name


async def test_the_key_guards_the_page_of_a_real_server(tmp_path: Path) -> None:
    """vLLM's own check covers /v1 only; ours covers the rest."""
    args = ["smollm2", "--page", "--api-key", "secret"]
    with LiveServer(args, tmp_path / "log") as guarded:
        async with aiohttp.ClientSession() as session:
            for path in ("/headway", "/headway/state", "/headway/live.js", "/headway/broken"):
                async with session.get(guarded.url + path) as answer:
                    assert answer.status == 401
                key = {"Authorization": "Bearer secret"}
                async with session.get(guarded.url + path, headers=key) as answer:
                    assert answer.status == 200


# -- Prometheus --------------------------------------------------------------------------------


def rules() -> list[dict[str, Any]]:
    document = yaml.safe_load((OPS / "alerts.yml").read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def queries() -> dict[str, str]:
    board = json.loads((OPS / "grafana.json").read_text(encoding="utf-8"))
    found = {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$slo_class", ".*")
        for panel in board["panels"]
        for target in panel["targets"]
    }
    return {**found, **QUERIES, **{name_of(rule): rule["expr"] for rule in rules()}}


def name_of(rule: dict[str, Any]) -> str:
    """The name of an alert, or of what a rule records."""
    return str(rule.get("alert") or rule["record"])


@pytest.fixture(scope="module")
def prometheus(server: LiveServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that scrapes the server every second, our rules loaded."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus is not installed (Debian package prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    target = server.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(OPS / "alerts.yml")],
        "scrape_configs": [{"job_name": "llm", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"127.0.0.1:{free_port()}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}",
               f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={url}"]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: scrapes(f"http://{url}") >= 3)
        for _ in range(3):  # rates need something to happen between two scrapes
            ask(server, {"slo_class": "chat"}, "Hi")
            ask(server, {"slo_ttft_ms": 1}, "Hi")
        before = scrapes(f"http://{url}")
        wait_for(lambda: scrapes(f"http://{url}") >= before + 3)
        yield f"http://{url}"
    finally:
        process.terminate()
        process.wait(20)


def scrapes(url: str) -> int:
    """Return how many good scrapes there were."""
    try:
        found = result(url, "sum_over_time(up[1h])")
    except OSError:
        return 0
    return int(float(found[0]["value"][1])) if found else 0


def result(url: str, query: str) -> list[dict[str, Any]]:
    address = f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
    document = json.loads(get(address))
    assert document["status"] == "success"
    found: list[dict[str, Any]] = document["data"]["result"]
    return found


MAY_BE_EMPTY = frozenset(
    name
    for name, query in queries().items()
    if name in {rule.get("alert") for rule in rules()}
    or any(what in query for what in ("target", "budget", "tenant"))
)
"""An alert that does not fire has no rows, nor has what asks for targets and tenants where nobody
states any; every other query must find something."""


@pytest.mark.parametrize("name", queries())
def test_every_query_finds_something(prometheus: str, name: str) -> None:
    """Panels, documented questions and alert rules, asked of a real Prometheus."""
    found = result(prometheus, queries()[name])
    assert found or name in MAY_BE_EMPTY


def test_attainment_is_what_happened(prometheus: str) -> None:
    """All chats kept, none of the hopeless ones."""
    found = result(prometheus, QUERIES["Attainment per class, last five minutes"])
    assert {row["metric"]["slo_class"]: float(row["value"][1]) for row in found} == {
        "chat": 1.0,
        "custom": 0.0,
    }


def test_prometheus_loaded_every_rule(prometheus: str) -> None:
    """Healthy, each of them; the one about broken promises waits its five minutes."""

    def loaded() -> list[dict[str, Any]]:
        groups = json.loads(get(prometheus + "/api/v1/rules"))["data"]["groups"]
        return [r for group in groups for r in group["rules"] if r["health"] == "ok"]

    assert len(wait_for(lambda: len(loaded()) == len(rules()) and loaded())) == len(rules())
    pending = {r["name"] for r in loaded() if r.get("state") == "pending"}
    assert "HeadwayPromisesBroken" in pending
