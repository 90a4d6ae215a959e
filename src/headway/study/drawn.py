"""AccelGen's evaluation traffic, as trace files: its mix, and a promise drawn for each request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from headway import registry
from headway.engines.sim.run import SimRun
from headway.latency import profile as profiles
from headway.latency.truth import Truth
from headway.study.on_sim import engine_of
from headway.study.requests import calls_of
from headway.study.spec import Machine
from headway.workloads import named, slos
from headway.workloads.named import KindShare
from headway.workloads.schema import WorkloadRequest, write_jsonl

CHAT_KINDS = ("alpaca", "sharegpt-turn")
DOCUMENT_KIND = "bookcorpus"
SHARE = 0.35
"""Of BookCorpus in the paper's mix; the rest is Alpaca and ShareGPT, half each [assumed]."""

POOL = 2
"""Requests drawn for each one used, so that other shares find enough of both."""


@dataclass(frozen=True, slots=True)
class DrawnMix:
    """AccelGen's mix and promises (arXiv 2503.13737, setup, as third parties report it).

    Attributes:
        reference_rps: First come, first served at this rate gives the mean TTFT of each bin of
            prompt lengths, of which promises are multiples. The paper's rate is not known.
        document_share: Of BookCorpus prompts; at most ``POOL * SHARE``.
        prompt_scale: Of those prompts' lengths, so that the longest fits the KV cache.
        slo_scale: Of every promise.
    """

    reference_rps: float
    document_share: float = SHARE
    prompt_scale: float = 1.0
    slo_scale: float = 1.0

    def requests(self, machine: Machine, count: int, seed: int = 0) -> list[WorkloadRequest]:
        """Return *count* requests with promises, arriving at the reference rate.

        Promises are drawn in the paper's mix, whatever the share of documents then is.
        """
        parts = (
            *(KindShare(kind, "chat", (1.0 - SHARE) / len(CHAT_KINDS)) for kind in CHAT_KINDS),
            KindShare(DOCUMENT_KIND, "document", SHARE, self.prompt_scale),
        )
        pool = named.of_parts(parts, POOL * count, self.reference_rps, seed)
        mean_ttft_s = slos.mean_ttft_s_by_bin(measured_ttfts(pool, machine))
        promised = [_scaled(r, self.slo_scale) for r in slos.by_bin(pool, mean_ttft_s, seed)]
        documents = [r for r in promised if r.slo_class == "document"]
        chats = [r for r in promised if r.slo_class == "chat"]
        num_documents = round(self.document_share * count)
        chosen = documents[:num_documents] + chats[: count - num_documents]
        order = np.random.default_rng([seed, 0xD0C5]).permutation(len(chosen))
        at_s = [r.arrived_at_s for r in pool]
        return [replace(chosen[i], arrived_at_s=at_s[k]) for k, i in enumerate(order)]

    def write(self, path: Path, machine: Machine, count: int) -> None:
        """Write the requests as a workload file, unless it is there already."""
        if not path.exists():
            write_jsonl(path, self.requests(machine, count))


def measured_ttfts(
    requests: Sequence[WorkloadRequest], machine: Machine
) -> list[tuple[int, float]]:
    """Return each request's prompt tokens and TTFT in seconds, first come, first served."""
    profile = profiles.load(machine.gpu)
    calls, _ = calls_of(requests, named.BOOK)
    run = SimRun(
        engine_of(machine, profile), Truth(profile), registry.build("fcfs"), book=named.BOOK
    )
    outcomes = run.run(calls)
    return [
        (call.num_prompt_tokens, outcomes[call.request_id].emitted_at_s[0] - call.arrived_at_s)
        for call in calls
    ]


def _scaled(request: WorkloadRequest, factor: float) -> WorkloadRequest:
    assert request.ttft_slo_s is not None
    assert request.tbt_slo_s is not None
    return replace(
        request,
        ttft_slo_s=factor * request.ttft_slo_s,
        tbt_slo_s=factor * request.tbt_slo_s,
    )
