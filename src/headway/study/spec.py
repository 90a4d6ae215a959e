"""What one virtual run is: who schedules what, on which machine, under which load."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from headway.workloads.reading import ReadOptions

EngineName = Literal["vllm", "sim"]

LATER_FIELDS = ("busiest_s", "replica_gpus", "num_retries", "signal_age_s")
"""Fields that runs which were kept before do not have. At its default such a field is left out of
a document, so that those runs are still found by their keys."""

STOCK = "stock"
"""vLLM's own code with the defaults of the GPU."""

STOCK_WAYS = (STOCK, "stock-static", "stock-hindsight")
"""The three honest baselines: as shipped, best overall, best for each load."""


@dataclass(frozen=True, slots=True)
class Knobs:
    """vLLM's own settings; ``None`` and 0 are what the GPU gets by default.

    Attributes:
        max_num_batched_tokens: Token budget of a step.
        by_class: ``--scheduling-policy priority``, the tightest class first.
        watermark: Share of the cache kept free at admission.
        max_num_queued_tokens: Cap on prompt tokens waiting for a first token.
    """

    max_num_batched_tokens: int | None = None
    by_class: bool = False
    watermark: float = 0.0
    max_num_queued_tokens: int | None = None

    @property
    def flags(self) -> str:
        """Return the settings as vLLM's command line, ``"(defaults)"`` when there are none."""
        parts = []
        if self.max_num_batched_tokens is not None:
            parts.append(f"--max-num-batched-tokens {self.max_num_batched_tokens}")
        if self.by_class:
            parts.append("--scheduling-policy priority")
        if self.watermark:
            parts.append(f"--watermark {self.watermark:g}")
        if self.max_num_queued_tokens is not None:
            parts.append(f"--max-num-queued-tokens {self.max_num_queued_tokens}")
        return " ".join(parts) or "(defaults)"


@dataclass(frozen=True, slots=True)
class Load:
    """The requests of a run.

    Attributes:
        source: A trace file, or the name of a workload.
        rate_rps: Mean arrival rate; ``None`` keeps a trace's own times.
        num_requests: How many; ``None`` takes all of a trace.
        seed: Of lengths, times and noise. With a file, seed k starts k times *num_requests*
            into it, so that seeds are different stretches of the same trace.
        arrivals: A process as ``--arrivals`` names it; ``None`` keeps the source's own.
        max_output_tokens: What every client sends as ``max_tokens``; longer outputs end there.
            ``None`` keeps the trace's limits, or one for all above the longest output.
        slo_file: TOML file of classes; ``None`` is the workload's own, else the built-in class.
        digest: Of the contents of the files named, so that a changed file is a new run.
        reading: What the user says of a trace file that it leaves open.
        busiest_s: Of a trace file only so many seconds, those with the most arrivals; ``None``
            takes it whole.
    """

    source: str
    rate_rps: float | None = None
    num_requests: int | None = None
    seed: int = 0
    arrivals: str | None = None
    slo_file: str | None = None
    max_output_tokens: int | None = None
    digest: str = ""
    reading: ReadOptions = field(default_factory=ReadOptions)
    busiest_s: float | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """The virtual machine: a profile and how it strays from it.

    Attributes:
        gpu: Name or file of a step-time profile.
        kv_tokens: KV cache in tokens; ``None`` is the profile's own.
        step_time_band: Every step lasts 1 + this times the profile's seconds.
        noise: Standard deviation of the log of each step's own factor.
        asynchronous: Schedule one step ahead.
        host_tokens: Host memory for swapped KV, in tokens; 0 recomputes every victim. Stock
            vLLM cannot swap and ignores it.
        copy_gib_per_s: Bandwidth of the link to that memory, one copy at a time.
        attention: The model's groups of layers, which share the cache; several need vLLM's
            scheduler. See :mod:`headway.engines.attention_kinds`.
        replica_gpus: Profiles and how many servers have each, in place of *gpu* and
            *num_replicas*.
        num_retries: At how many other servers a refused request is tried, at most.
        signal_age_s: How often routers see the servers anew; 0 shows them as they are.
    """

    gpu: str
    kv_tokens: int | None = None
    block_size: int = 16
    max_num_seqs: int | None = None
    step_time_band: float = 0.0
    noise: float = 0.0
    drift: str | None = None
    asynchronous: bool = False
    prefix_caching: bool = False
    num_replicas: int = 1
    router: str = "round-robin"
    host_tokens: int = 0
    copy_gib_per_s: float = 25.0
    attention: tuple[str, ...] = ("full",)
    replica_gpus: tuple[tuple[str, int], ...] = ()
    num_retries: int = 0
    signal_age_s: float = 0.0

    @property
    def gpus(self) -> tuple[str, ...]:
        """The profile of each server."""
        groups = self.replica_gpus or ((self.gpu, self.num_replicas),)
        return tuple(gpu for gpu, count in groups for _ in range(count))

    @property
    def gpu_text(self) -> str:
        """The profiles in words, such as ``4 x a + 4 x b``; of equal servers the profile alone."""
        groups = self.replica_gpus or ((self.gpu, 1),)
        names = [(Path(gpu).name, count) for gpu, count in groups]
        return names[0][0] if len(names) == 1 else " + ".join(f"{n} x {name}" for name, n in names)


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One run, complete: the same spec gives the same result, plan times aside.

    Attributes:
        length_error: Tell the policy every output length, off by a log-normal factor of this
            spread; ``None`` lets it predict by itself.
    """

    policy: str
    engine: EngineName
    load: Load
    machine: Machine
    overload: str = "demote"
    options: Mapping[str, Any] = field(default_factory=dict)
    knobs: Knobs = field(default_factory=Knobs)
    length_error: float | None = None

    @property
    def is_stock(self) -> bool:
        """Whether vLLM's own scheduler decides."""
        return self.policy in STOCK_WAYS

    def at(self, rate_rps: float | None, seed: int | None = None) -> RunSpec:
        """Return the same run at another rate and, when given, another seed."""
        load = replace(self.load, rate_rps=rate_rps)
        return replace(self, load=load if seed is None else replace(load, seed=seed))

    def document(self) -> dict[str, Any]:
        """Return all fields as plain values, those of :data:`LATER_FIELDS` where they say more."""
        found = asdict(self)
        for part, value in (("load", self.load), ("machine", self.machine)):
            for one in fields(value):
                is_default = one.name in LATER_FIELDS and getattr(value, one.name) == one.default
                if is_default:
                    del found[part][one.name]
        return found

    def key(self) -> str:
        """Return a short name of this run, fit for a file and different for different runs."""
        text = json.dumps(self.document(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:10]
        rate = f"{self.load.rate_rps:g}" if self.load.rate_rps is not None else "asis"
        return f"{self.policy}__{self.engine}__r{rate}__s{self.load.seed}__{digest}"
