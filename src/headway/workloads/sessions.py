"""Made-up sessions: calls that come after one another, each with all that was said before it.

A session begins with one of a few heads (a system prompt, the tools' descriptions) and grows by
each answer and by what is said next. Calls are open loop: the next one comes after the time an
answer is assumed to take and a pause, whether or not the server was that fast.

The rate sets how fast sessions begin, and nothing else: session k is the same at every rate, with
the same pauses. So a higher rate means more sessions at a time, and of a fixed number of requests
fewer are late calls. Squeezing the pauses instead would ask for what no client does.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from headway.workloads.arrivals import Arrivals, times_s
from headway.workloads.length_distribution import LengthDistribution, lognormal
from headway.workloads.schema import WorkloadRequest

SEED_TAG = 0x5E55
"""Keeps these random numbers apart from others with the same seed."""

HASH_TOKENS = 16
"""Tokens of a chain's id: vLLM's default block."""

ID_SPAN = 10_000
"""Ids set aside for each head and each session; a prompt has fewer blocks."""

FIRST_TOKEN_S, TOKEN_S = 0.5, 0.05
"""What an answer is assumed to take, to its first token and then a token; assumed."""

ROUND = 6
"""Decimals of arrival times in seconds."""


@dataclass(frozen=True, slots=True)
class SessionKind:
    """One sort of session. Lengths in tokens.

    Attributes:
        heads: Lengths of the heads; each session draws one.
        opening: What the first call adds to the head.
        growth: What each later call adds to the call before it and its answer.
        num_calls: Of a session that stays below ``longest_tokens``.
        pause_s: Mean seconds between an answer and the next call, exponential.
        longest_tokens: A session ends before a prompt would exceed this.
        first_class: Class of a session's first call.
        slo_class: Class of the others.
        source: What is published and what is assumed.
    """

    heads: tuple[int, ...]
    opening: LengthDistribution
    growth: LengthDistribution
    output: LengthDistribution
    num_calls: LengthDistribution
    pause_s: float
    longest_tokens: int
    first_class: str
    slo_class: str
    source: str


KINDS = {
    "turns": SessionKind(
        heads=(400, 1_200, 2_400),
        opening=lognormal(69.5, 1.0),
        growth=lognormal(69.5, 1.0),
        output=lognormal(214.5, 0.9),
        num_calls=LengthDistribution(((0.0, 2), (0.5, 4), (1.0, 10))),
        pause_s=5.0,
        longest_tokens=16_000,
        first_class="turn",
        slo_class="turn",
        source="Questions and answers as in LMSYS-Chat-1M (arXiv 2309.11998, table 1: means of 69.5"
        " and 214.5 tokens); the log-normal shapes, three system prompts, 2 to 10 turns and pauses"
        " of 5 s on average are assumed. Real people pause longer, and a run would see no session"
        " to its end.",
    ),
    "agents": SessionKind(
        heads=(3_200, 4_800),
        opening=LengthDistribution(((0.0, 4_800), (1.0, 13_000))),
        growth=LengthDistribution(((0.0, 100), (1.0, 600))),
        output=LengthDistribution(((0.0, 20), (1.0, 80))),
        num_calls=LengthDistribution(((0.0, 10), (1.0, 40))),
        pause_s=2.0,
        longest_tokens=30_000,
        first_class="agent-start",
        slo_class="agent",
        source="A program that calls tools: contexts of 8k to 30k tokens that grow by 100 to 600"
        " with each tool's answer, calls about 5 s apart. Assumed.",
    ),
}
"""Name → sessions; ``source`` says what is published."""


@dataclass(frozen=True, slots=True)
class Session:
    """One session: arrays of a value a call, and the head they share with other sessions.

    Attributes:
        offsets_s: Seconds since the session began.
        prompts: Prompt tokens.
        outputs: Output tokens.
        head: Index of the head.
    """

    offsets_s: np.ndarray
    prompts: np.ndarray
    outputs: np.ndarray
    head: int


def make(
    name: str,
    num_requests: int,
    rate_rps: float,
    seed: int,
    arrivals: Arrivals,
    kind: SessionKind | None = None,
) -> list[WorkloadRequest]:
    """Return the first *num_requests* calls of sessions that begin as *arrivals* says.

    They come within ``num_requests / rate_rps`` seconds, the last one at their end: sessions begin
    at the pace that makes it so. All begin with the run, so a run that is not much longer than a
    session is busier at its end than at its beginning.

    Args:
        rate_rps: Mean calls, not sessions, per second.
        kind: Of sessions; by default what :data:`KINDS` calls so.
    """
    kind = kind or KINDS[name]
    horizon_s = num_requests / rate_rps
    sessions: list[Session] = []
    while True:
        wanted = min(2 * len(sessions) or 16, num_requests)
        sessions += [_session(kind, name, seed, k) for k in range(len(sessions), wanted)]
        starts_s = _starts_s(sessions, num_requests, horizon_s, seed, arrivals)
        # Who begins after the end is not missed; as many sessions as requests always suffice.
        if starts_s is not None and (starts_s[-1] >= horizon_s or wanted == num_requests):
            break
    calls = [
        (start_s + offset_s, k, turn)
        for k, start_s in enumerate(starts_s.tolist())
        for turn, offset_s in enumerate(sessions[k].offsets_s.tolist())
    ]
    first = sorted(calls)[:num_requests]
    return [_request(kind, sessions[k], k, turn, at_s) for at_s, k, turn in first]


def _session(kind: SessionKind, name: str, seed: int, number: int) -> Session:
    rng = np.random.default_rng([seed, SEED_TAG, zlib.crc32(name.encode()), number])
    count = int(kind.num_calls.sample(rng, 1)[0])
    head = int(rng.integers(len(kind.heads)))
    outputs = kind.output.sample(rng, count)
    added = kind.growth.sample(rng, count)
    added[0] = kind.heads[head] + kind.opening.sample(rng, 1)[0]
    prompts = np.cumsum(added) + np.concatenate([[0], np.cumsum(outputs)[:-1]])
    pauses_s = FIRST_TOKEN_S + TOKEN_S * outputs + rng.exponential(kind.pause_s, count)
    offsets_s = np.concatenate([[0.0], np.cumsum(pauses_s)[:-1]])
    last = max(int(np.searchsorted(prompts, kind.longest_tokens, side="right")), 1)
    return Session(offsets_s[:last], prompts[:last], outputs[:last], head)


def _starts_s(
    sessions: list[Session], num_requests: int, horizon_s: float, seed: int, arrivals: Arrivals
) -> np.ndarray | None:
    """Return when sessions begin, so that the last of *num_requests* comes at *horizon_s*.

    The pace is found for sessions at equal distances, then the process is drawn at that pace,
    and stretched to meet the end: bursts of so many seconds stay about as long as they were.

    Returns:
        Seconds, increasing; ``None`` when the sessions have too few calls before the end.
    """
    even = np.arange(1.0, len(sessions) + 1.0)
    pace_s = _stretch(even, sessions, num_requests, horizon_s)
    if pace_s <= 0.0:
        return None
    rng = np.random.default_rng([seed, SEED_TAG])
    drawn_s = times_s(arrivals, 1.0 / pace_s, len(sessions), rng)
    factor = _stretch(drawn_s, sessions, num_requests, horizon_s)
    return factor * drawn_s if factor > 0.0 else None


def _stretch(
    starts_s: np.ndarray, sessions: list[Session], num_requests: int, horizon_s: float
) -> float:
    """Return what *starts_s* are multiplied by so that *num_requests* calls come by *horizon_s*.

    A call comes in time up to its own factor; the answer is the ``num_requests``-th largest of
    those, and not positive when so many cannot come.
    """
    if sum(len(one.offsets_s) for one in sessions) < num_requests:
        return 0.0
    own = np.concatenate(
        [(horizon_s - one.offsets_s) / at_s for at_s, one in zip(starts_s, sessions, strict=True)]
    )
    return float(np.partition(own, -num_requests)[-num_requests])


def _request(
    kind: SessionKind, session: Session, number: int, turn: int, at_s: float
) -> WorkloadRequest:
    prompt = int(session.prompts[turn])
    in_head = kind.heads[session.head] // HASH_TOKENS
    head, own = session.head * ID_SPAN, (len(kind.heads) + number) * ID_SPAN
    return WorkloadRequest(
        f"s{number}-{turn}",
        round(at_s, ROUND),
        prompt,
        int(session.outputs[turn]),
        slo_class=kind.slo_class if turn else kind.first_class,
        hash_ids=(
            *range(head, head + in_head),
            *range(own + in_head, own + prompt // HASH_TOKENS),
        ),
        hash_tokens=HASH_TOKENS,
    )
