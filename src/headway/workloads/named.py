"""The workloads one can name with ``--workload``: one kind of request, or a mix of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headway.errors import UserError
from headway.slo import SloBook
from headway.workloads import mix, sessions, synthetic
from headway.workloads.arrivals import Arrivals, with_arrivals
from headway.workloads.schema import WorkloadRequest

SLO_FILE = Path(__file__).with_name("named_slo.toml")
"""The promises of every class the named workloads use."""

BOOK = SloBook.load(SLO_FILE)

POISSON = Arrivals("poisson")


@dataclass(frozen=True, slots=True)
class KindShare:
    """One kind's place in a workload: share of the requests, class, scale of its prompts."""

    kind: str
    slo_class: str
    share: float = 1.0
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Workload:
    """A named workload and one sentence about it.

    Attributes:
        sessions: A kind of :mod:`.sessions`, instead of parts.
    """

    summary: str
    parts: tuple[KindShare, ...] = ()
    sessions: str | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes its requests have."""
        if self.sessions is None:
            return tuple(dict.fromkeys(part.slo_class for part in self.parts))
        kind = sessions.KINDS[self.sessions]
        return tuple(dict.fromkeys((kind.first_class, kind.slo_class)))

    @property
    def shares_prefixes(self) -> bool:
        """Whether prompts begin with what others have computed."""
        return self.sessions is not None


WORKLOADS = {
    "sharegpt": Workload("Chat with its history.", (KindShare("sharegpt", "chat"),)),
    "sharegpt-turn": Workload("Chat, one short turn.", (KindShare("sharegpt-turn", "chat"),)),
    "alpaca": Workload("Very short instructions.", (KindShare("alpaca", "chat"),)),
    "bookcorpus": Workload("Prompts of 4k to 100k tokens.", (KindShare("bookcorpus", "document"),)),
    "azure-code": Workload("Code completion at Azure.", (KindShare("azure-code", "code"),)),
    "azure-chat": Workload("Conversations at Azure.", (KindShare("azure-chat", "chat"),)),
    "reasoning": Workload(
        "Long thoughts before the answer.", (KindShare("reasoning", "reasoning"),)
    ),
    "long-outputs": Workload(
        "Outputs longer than prompts: KV pressure grows while requests run.",
        (KindShare("writing", "writing"),),
    ),
    "retrieval": Workload("Long prompts, short outputs.", (KindShare("retrieval", "retrieval"),)),
    "turns": Workload(
        "Chats of several turns behind three system prompts: 88 % of the prompt tokens are cached.",
        sessions="turns",
    ),
    "agents": Workload(
        "Agents' contexts of 8k to 30k tokens that grow by tools' answers; a follow-up call finds"
        " 98 % of its prompt cached.",
        sessions="agents",
    ),
    "longdoc": Workload("Prompts of 10k to 30k tokens.", (KindShare("longdoc", "document"),)),
    "mixed": Workload(
        "Chat, code and summaries with their own promises, 60, 25 and 15 of 100.",
        (
            KindShare("azure-chat", "chat", 0.60),
            KindShare("azure-code", "code", 0.25),
            KindShare("summary", "summary", 0.15),
        ),
    ),
    # AccelGen's setup: 35 % BookCorpus is reported, that the rest is halved is assumed.
    "accelgen": Workload(
        "AccelGen's mix: Alpaca, ShareGPT and 35 % BookCorpus of up to 100k tokens.",
        (
            KindShare("alpaca", "chat", 0.325),
            KindShare("sharegpt-turn", "chat", 0.325),
            KindShare("bookcorpus", "document", 0.35),
        ),
    ),
    # 12 GB hold about 15k tokens of a 13B model: 100k tokens x 0.12 and 2,048 out fit.
    "accelgen-13b": Workload(
        "The same with BookCorpus prompts x 0.12, to fit 15k tokens of KV.",
        (
            KindShare("alpaca", "chat", 0.325),
            KindShare("sharegpt-turn", "chat", 0.325),
            KindShare("bookcorpus", "document", 0.35, 0.12),
        ),
    ),
}


def names() -> list[str]:
    """Return the names that :func:`make` knows."""
    return list(WORKLOADS)


def book(name: str) -> SloBook:
    """Return the SLO classes of the workload *name*; requests carry one of them.

    Raises:
        UserError: There is no such workload.
    """
    _workload(name)
    return BOOK


def make(
    name: str, num_requests: int, rate_rps: float, seed: int, arrivals: Arrivals = POISSON
) -> list[WorkloadRequest]:
    """Return a named workload with its arrival times; the same arguments give the same requests.

    Lengths depend on *seed* but not on *rate_rps*, so a sweep over rates asks the same requests;
    of sessions, the same sessions, more or less far (:mod:`.sessions`).
    The shares of a mix are exact, rounded to whole requests; their order is random.

    Raises:
        UserError: No such workload, no request, or arrival times that would have to be recorded.
    """
    workload = _workload(name)
    if arrivals.kind == "trace":
        raise UserError(
            f"The workload {name!r} has no recorded times; use --arrivals poisson, gamma:CV,"
            " onoff:ON_S:OFF_S or diurnal:PERIOD_S:DEPTH."
        )
    if workload.sessions is None:
        return of_parts(workload.parts, num_requests, rate_rps, seed, arrivals)
    check_count(num_requests)
    return sessions.make(workload.sessions, num_requests, rate_rps, seed, arrivals)


def of_parts(
    parts: Sequence[KindShare],
    num_requests: int,
    rate_rps: float,
    seed: int,
    arrivals: Arrivals = POISSON,
) -> list[WorkloadRequest]:
    """Return a mix of *parts*, as :func:`make` returns a named one.

    Raises:
        UserError: No request.
    """
    check_count(num_requests)
    counts = mix.counts_of([part.share for part in parts], num_requests)
    made = {
        part.kind: (
            part.share,
            synthetic.make(part.kind, count, seed, part.slo_class, part.scale),
        )
        for part, count in zip(parts, counts, strict=True)
    }
    rng = np.random.default_rng([seed, 0x41BD])
    requests = mix.by_shares(made, num_requests, rng)
    return with_arrivals(requests, arrivals, rate_rps, rng)


def check_count(num_requests: int) -> None:
    """Check that there is something to make.

    Raises:
        UserError: No request.
    """
    if num_requests < 1:
        raise UserError(f"A workload needs at least one request, not {num_requests}.")


def _workload(name: str) -> Workload:
    if name not in WORKLOADS:
        raise UserError(f"There is no workload {name!r:.60}; known are {', '.join(names())}.")
    return WORKLOADS[name]
