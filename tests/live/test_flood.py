"""A real server, two API keys: one floods it, the other asks quietly, and what each of them gets.

Five rounds with ``HEADWAY_LONG=1``, else two::

    HEADWAY_LONG=1 python -m pytest tests/live/test_flood.py -s
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import re
import statistics
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from flooding import Flood, Flooded, first_s, num_kept

from headway.bench.access import Access
from headway.bench.server import LiveServer
from headway.metrics.record import RequestRecord
from headway.slo import NO_PROMISE, Slo
from headway.slo_digests import digest_of
from headway.slo_tenants import KEY_TENANT_DIGITS

pytestmark = pytest.mark.live

FLOODER, QUIET = "zanzibar-floods", "timbuktu-asks"
"""The keys; they must be seen nowhere."""

FLOODS, ASKS = (f"key-{digest_of(key)[:KEY_TENANT_DIGITS]}" for key in (FLOODER, QUIET))
"""The tenants they make."""

ROUNDS = 5 if os.environ.get("HEADWAY_LONG") == "1" else 2
REQUESTS = 6
"""Of the quiet key, in each leg of a round."""

STREAMS = 48
"""Of the flood: several times what a server can answer in the time that is promised."""

WAITING_STREAMS = 24
"""Of the flood that does not hang up, beside which somebody asks for no promise: those that are
answered in time and ask again keep the server busy."""

LAST_WAITS_TIMES = 2.0
"""Times as long that a first token takes at least, where those without a promise come last."""

AS_ALONE = 0.75
"""Of the promises kept alone, how many are kept beside a flood: the machine itself breaks some."""

FLOODED = 0.5
"""Of those, how many are kept at most where all come under one key."""

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Told:
    """What a server was asked, and everything that it told and left."""

    rounds: list[dict[str, list[RequestRecord]]] = field(default_factory=list)
    unpromised: dict[str, tuple[list[RequestRecord], list[RequestRecord]]] = field(
        default_factory=dict
    )
    before: str = ""
    after: str = ""
    state: str = ""
    log: str = ""
    recording: str = ""


def get(server: LiveServer, path: str) -> str:
    request = urllib.request.Request(server.url + path)
    request.add_header("Authorization", f"Bearer {QUIET}")
    with LOCAL.open(request, timeout=60) as answer:
        text: str = answer.read().decode()
    return text


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """One server, asked everything; it has stopped."""
    root, told = tmp_path_factory.mktemp("flood"), Told()
    slo_file = root / "slo.toml"
    slo_file.write_text("[classes.chat]\nttft_s = 60\ntbt_s = 10\n")
    args = ["smollm2", "--slo", str(slo_file), "--page", "--record", str(root / "rec")]
    # Beside a flood a step is as long as it may be, and a first token waits for one in flight.
    args += ["--max-num-batched-tokens", "128", "--api-key", FLOODER, QUIET]
    # Two threads wait for each other at every layer, which takes ages where others use the cores.
    with LiveServer(args, root / "server.log", env={"OMP_NUM_THREADS": "1"}) as server:
        asyncio.run(ask_everything(server, slo_file, told))
    told.log = (root / "server.log").read_text()
    told.recording = "".join(map(text_of, sorted((root / "rec").iterdir())))
    return told


async def ask_everything(server: LiveServer, slo_file: Path, told: Told) -> None:
    """Ask the legs of all rounds, then what goes with no promise, then with a changed file."""
    async with Access().session() as session:
        clients = Flooded(server.url, session, slo_file, Slo(ttft_s=60.0, tbt_s=10.0))
        await clients.alone(QUIET, REQUESTS)  # Until then the server does not know its speed.
        for _ in range(ROUNDS):
            told.rounds.append(await round_of(clients))
        for way in ("fair", "last"):
            await clients.write(top=f'unpromised = "{way}"')
            async with clients.flood(FLOODER, WAITING_STREAMS, hang_up=False) as flood:
                told.unpromised[way] = await unpromised_beside(clients, flood), list(flood.ended)
        told.before = get(server, "/metrics")
        await clients.write(
            "target = 0.9", "[tenants.quiet]", "share = 2", "target = 0.8",
            f'keys = ["sha256:{digest_of(QUIET)}"]',
        )  # fmt: skip
        await clients.ask(QUIET, clients.slo)
        deadline_s = time.monotonic() + 60
        while 'outcome="finished",tenant="quiet"} 1.0' not in (text := get(server, "/metrics")):
            assert time.monotonic() < deadline_s, "it was never told"
            await asyncio.sleep(0.2)
        told.after = text
        told.state = get(server, "/headway/state") + get(server, "/headway/broken?worst=512")


async def round_of(clients: Flooded) -> dict[str, list[RequestRecord]]:
    """Return what the quiet client got in the three legs of a round."""
    found = {"alone": await clients.alone(QUIET, REQUESTS)}
    async with clients.flood(FLOODER, STREAMS) as flood:
        found["beside"] = await clients.beside(flood, QUIET, REQUESTS)
    async with clients.flood(FLOODER, STREAMS) as flood:
        found["one key"] = await clients.beside(flood, FLOODER, REQUESTS)
    return found


async def unpromised_beside(clients: Flooded, flood: Flood) -> list[RequestRecord]:
    """Return three requests without a promise, asked after each other beside a flood."""
    calls = []
    for _ in range(3):
        calls.append(
            asyncio.create_task(flood.outlast(clients.ask(QUIET, NO_PROMISE), 2 * WAITING_STREAMS))
        )
        await flood.until_served(1)
    return [await call for call in calls]


def test_a_quiet_key_keeps_its_promises_beside_a_flood(told: Told) -> None:
    """As many as alone, where those of the same load under one key break."""
    kept = {leg: sum(num_kept(each[leg]) for each in told.rounds) for leg in told.rounds[0]}
    for number, each in enumerate(told.rounds, start=1):
        print(number, each["alone"][0].slo.stamp())
        for leg, records in each.items():
            print(f"  {leg:8}", num_kept(records), [round(first_s(r), 2) for r in records])
    assert kept["alone"] >= AS_ALONE * ROUNDS * REQUESTS, "the machine is too busy to tell"
    assert kept["beside"] >= AS_ALONE * kept["alone"]
    assert kept["one key"] <= FLOODED * kept["alone"]


def test_who_asks_for_no_promise_has_its_turn(told: Told) -> None:
    """First tokens come in order of arrival beside promises that are kept, and sooner than where
    requests without a promise come last."""
    for way, (records, ended) in told.unpromised.items():
        print(f"{way:8}", [round(first_s(r), 2) for r in records], num_kept(ended), len(ended))
    records, ended = told.unpromised["fair"]
    assert all(record.finished for record in records)
    firsts_s = [record.arrived_at_s + first_s(record) for record in records]
    assert firsts_s == sorted(firsts_s)
    assert num_kept(ended) > 0
    fair_s, last_s = (
        statistics.median(map(first_s, told.unpromised[way][0])) for way in ("fair", "last")
    )
    assert last_s > LAST_WAITS_TIMES * fair_s


def value(metrics: str, name: str, *labels: str) -> float:
    """Return a sample's value, 0 where there is none."""
    sample = f'{name}{{engine="0",{",".join(labels)}}}'
    found = re.search(rf"^{re.escape(sample)} (\S+)$", metrics, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_the_tenants_are_told(told: Told) -> None:
    """Requests, promises and seconds of the engine under the digests of both keys: who floods has
    most of the engine, and keeps the smaller share of its promises."""
    kept_share, engine_s = {}, {}
    for tenant in (FLOODS, ASKS):
        name = f'tenant="{tenant}"'
        promised = value(told.before, "headway_tenant_requests_promised_total", name)
        attained = value(told.before, "headway_tenant_requests_attained_total", name)
        kept_share[tenant] = attained / promised
        engine_s[tenant] = value(told.before, "headway_tenant_engine_seconds_total", name)
        assert value(told.before, "headway_tenant_tokens_total", 'kind="output"', name) > 0
    print(kept_share, engine_s)
    hung_up = 'outcome="aborted"', f'tenant="{FLOODS}"'
    assert value(told.before, "headway_tenant_requests_total", *hung_up) > 0
    assert 0 < kept_share[FLOODS] < AS_ALONE <= kept_share[ASKS] <= 1
    assert engine_s[FLOODS] > engine_s[ASKS] > 0


def test_no_key_is_seen_anywhere(told: Told) -> None:
    """Not in metrics, state, log and recording, where the tenants are."""
    for text in (told.before, told.after, told.state, told.log, told.recording):
        assert text
        assert FLOODER not in text
        assert QUIET not in text
    for text in (told.before, told.recording):
        assert FLOODS in text
        assert ASKS in text


def test_a_changed_file_holds_for_the_next_request(told: Told) -> None:
    """Target, tenant and share: on metrics, and in what the scheduler is told."""
    assert "headway_slo_target{" not in told.before
    assert value(told.after, "headway_slo_target", 'slo_class="chat"') == 0.9
    assert value(told.after, "headway_tenant_slo_target", 'tenant="quiet"') == 0.8
    rows = [json.loads(line) for line in told.recording.splitlines()]
    slos: list[dict[str, Any]] = [row["slo"] for row in rows if row.get("event") == "Arrived"]
    assert slos[-1]["tenant"] == "quiet"
    assert (slos[-1]["share"], slos[-1]["target"], slos[-1]["tenant_target"]) == (2.0, 0.9, 0.8)
    assert all("target" not in slo and slo["tenant"] in (FLOODS, ASKS) for slo in slos[:-1])
