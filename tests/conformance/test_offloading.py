"""vLLM's own offloading connector: the real scheduler's side of it, its workers under the clock.

It refuses the CPU platform where workers begin to copy; nothing of the scheduler's side does. Every
block a prompt fills is stored on the host, and a prompt that begins like one before loads it.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from feature_lab import FeatureRun
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import OffloadingWorkerMetadata
from vllm.v1.outputs import KVConnectorOutput

from headway.engines.virtual import Outcome, VirtualCall
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))

OFFLOADING = {
    "kv_connector": "OffloadingConnector",
    "kv_role": "kv_both",
    "kv_connector_extra_config": {"cpu_bytes_to_use": 1 << 28},
}

TIGHT = {"slo_ttft_ms": 300.0, "slo_tbt_ms": 100.0}


class OffloadingRun(FeatureRun):
    """Workers that copy a job in ``job_s`` seconds, either way, and report it after a step."""

    job_s = 0.02

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.num_loads = self.num_stores = 0
        self._jobs: dict[int, tuple[float, str]] = {}

    def _launch(self, output: Any) -> None:
        asked = output.kv_connector_metadata
        ready_s = self.clock.time_s + self.job_s
        for number in asked.store_jobs:
            self._jobs[number] = (ready_s, "")
        for number, job in asked.load_jobs.items():
            self._jobs[number] = (ready_s, job.req_id)
        for number in asked.jobs_to_flush or ():
            self._jobs[number] = (self.clock.time_s, self._jobs[number][1])
        self.num_stores += len(asked.store_jobs)
        self.num_loads += len(asked.load_jobs)
        super()._launch(output)

    def _take_up_loads(self) -> None:
        """Loads are jobs like all others."""

    def connector_output(self, output: Any) -> KVConnectorOutput:
        done = {n: job for n, job in self._jobs.items() if job[0] <= self.clock.time_s}
        for number in done:
            del self._jobs[number]
        here = {request_id for _, request_id in done.values() if request_id}
        told = OffloadingWorkerMetadata(dict.fromkeys(done, 1)) if done else None
        return KVConnectorOutput(finished_recving=here or None, kv_connector_worker_meta=told)


def turns() -> list[VirtualCall]:
    """Return three turns of twelve conversations, which forty blocks a conversation do not hold."""
    calls = []
    for turn in range(3):
        for i in range(12):
            at_s = 2.0 * turn + 0.05 * i
            chain = tuple(f"{i} {part}" for part in range(4 + 2 * turn))
            num_prompt = 256 * len(chain) + 40
            calls.append(
                VirtualCall(
                    f"{i} turn {turn}",
                    at_s,
                    num_prompt,
                    60,
                    TIGHT if i % 2 else {},
                    hash_ids=chain,
                    hash_tokens=256,
                )
            )
    return calls


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_conversations_come_back_from_the_host(lab: Any, asynchronous: bool) -> None:
    """Everybody is served, as much is loaded as by stock, and no promise of stock's is lost."""
    runs = []
    for headway in (None, {"policy": "headway"}):
        engine = lab.Engine(
            transfer=OFFLOADING,
            prefix_caching=True,
            num_blocks=700,
            asynchronous=asynchronous,
            headway=headway,
        )
        run = OffloadingRun(engine, TRUTH, {})
        run.run(turns(), 30_000)
        runs.append(run)
    stock, ours = runs
    assert stock.num_loads > 0
    assert ours.num_loads >= 0.9 * stock.num_loads
    for name, mine in ours.outcomes.items():
        assert mine.finish_reason == stock.outcomes[name].finish_reason == "stop"
        assert len(mine.emitted_at_s) == 60
    assert num_in_time(ours.outcomes) >= num_in_time(stock.outcomes)
    lab.is_clean(ours)
    assert ours.scheduler.headway_aside.num_steps == 0


def num_in_time(outcomes: dict[str, Outcome]) -> int:
    return sum(
        outcome.emitted_at_s[0] - outcome.call.arrived_at_s <= TIGHT["slo_ttft_ms"] / 1000
        for outcome in outcomes.values()
        if outcome.call.xargs
    )
