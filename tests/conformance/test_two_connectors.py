"""Swap beside another KV connector, in vLLM's ``MultiConnector``: each keeps what is its own."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fake_connector import TRANSFER
from feature_lab import Extra, FeatureRun
from test_swap import Forced, always
from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import (
    MultiKVConnectorWorkerMetadata,
)

from headway.engines.vllm.swap_connector import transfer_config
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))

HOST_BLOCKS = 200
BLOCK_BYTES = 16 * 2 * 4 * 16 * 4
"""Bytes of one block of the virtual model's only layer."""


def together(role: str) -> dict[str, Any]:
    """Return vLLM's arguments for swap and, behind it, the fake connector."""
    return {
        "kv_connector": "MultiConnector",
        "kv_role": role,
        "kv_connector_extra_config": {
            "connectors": [transfer_config(HOST_BLOCKS * BLOCK_BYTES), TRANSFER]
        },
    }


class TwoConnectors(FeatureRun):
    """The workers of both: copies over the link, loads from elsewhere."""

    def _launch(self, output: Any) -> None:
        swap, _ = output.kv_connector_metadata.metadata
        self.copies = swap
        self.link.carry_out(swap, self.clock.time_s)
        super()._launch(output)

    def _take_up_loads(self) -> None:
        started = self.scheduler.connector.sub_connectors[1].started
        for request_id, seconds in started.items():
            self._loading[request_id] = self.clock.time_s + seconds
        started.clear()

    def connector_output(self, output: Any) -> Any:
        result = super().connector_output(output)
        copied = self.link.report(self.copies)
        if copied is not None:
            parts = (copied.kv_connector_worker_meta, None)
            result.kv_connector_worker_meta = MultiKVConnectorWorkerMetadata(parts)
        return result


@pytest.mark.parametrize("role", ["kv_producer", "kv_both"])
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_both_do_their_part(lab: Any, asynchronous: bool, role: str) -> None:
    """Prompts load from elsewhere; tight ones push loose ones out, and these come back by swap."""
    loose = [lab.Call(f"loose {i}", 0.01 * i, 900, 400) for i in range(6)]
    tight = [
        lab.Call(f"tight {i}", 0.5 + 0.3 * i, 1_500, 10, {"slo_ttft_ms": 150.0}) for i in range(6)
    ]
    extras = {c.request_id: Extra(remote_tokens=800, load_s=0.01) for c in loose}
    engine = lab.Engine(
        transfer=together(role),
        num_blocks=450,
        asynchronous=asynchronous,
        headway={"policy": "headway"},
    )
    run = TwoConnectors(engine, TRUTH, extras)
    scheduler = run.scheduler
    assert scheduler.headway_swap is scheduler.connector.sub_connectors[0]
    scheduler.headway = Forced(scheduler.headway, always)
    outcomes = run.run([*loose, *tight], 30_000)
    assert all(len(o.emitted_at_s) == o.call.num_output_tokens for o in outcomes.values())
    lab.is_clean(run)
    slots = scheduler.headway_swap.slots
    slots.validate()
    assert (slots.num_free, slots.num_requests) == (HOST_BLOCKS, 0)
    assert scheduler.connector.sub_connectors[1].num_asked >= len(loose)
    # In a consumer's role vLLM holds the blocks of a step in flight back: nobody is pushed out.
    assert bool(run.link.num_swapped) == (not asynchronous or role == "kv_producer")
    assert scheduler.headway_aside.num_steps == 0
