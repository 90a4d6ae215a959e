"""Made-up requests whose lengths have the published statistics of well-known data sets.

Prompt and output lengths are drawn independently: in the public data the one does not predict
the other (r ≈ 0), what was asked does. Only statistics are here, no row of any data set.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np

from headway.errors import UserError
from headway.workloads.length_distribution import LengthDistribution, lognormal
from headway.workloads.schema import WorkloadRequest

SEED_TAG = 0x5E17
"""Keeps the lengths' random numbers apart from those of arrival times with the same seed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of request: how long its prompts and outputs are, and where that is known from."""

    prompt: LengthDistribution
    output: LengthDistribution
    source: str


def _quantiles(*tokens: float) -> LengthDistribution:
    """Return a distribution from its 0, 1, 5, 10, 25, 50, 75, 90, 95, 99 and 100 % quantiles."""
    probabilities = (0.0, 0.01, 0.05, 0.10, 0.25, 0.50, 0.75, 0.90, 0.95, 0.99, 1.0)
    return LengthDistribution(tuple(zip(probabilities, tokens, strict=True)))


KINDS = {
    "sharegpt": Kind(
        _quantiles(1, 12, 29, 74, 580, 1730, 3734, 5696, 6563, 7434, 8141),
        _quantiles(2, 6, 44, 84, 228, 415, 628, 834, 920, 998, 1024),
        "ShareGPT conversations with their history, at most 8k tokens, as in Sarathi-Serve"
        " (arXiv 2403.02310, table 2: prompt median 1730, p90 5696; output 415, 834)."
        " Mean/p50/p95/p99: prompt 2340/1730/6563/7434, output 439/415/920/998.",
    ),
    "sharegpt-turn": Kind(
        lognormal(161.31, 1.2),
        lognormal(337.99, 0.9),
        "ShareGPT, one turn, as in vLLM's paper (arXiv 2309.06180, figure 11: mean prompt 161.31,"
        " mean output 337.99). Only means are published; the log-normal shape is assumed.",
    ),
    "alpaca": Kind(
        lognormal(19.31, 0.5),
        lognormal(58.45, 0.9),
        "Alpaca instructions, as in vLLM's paper (arXiv 2309.06180, figure 11: mean prompt 19.31,"
        " mean output 58.45). Only means are published; the log-normal shape is assumed.",
    ),
    "bookcorpus": Kind(
        LengthDistribution(((0.0, 4_000), (1.0, 100_000))),
        LengthDistribution(((0.0, 16), (0.5, 256), (0.95, 1_200), (1.0, 2_048))),
        "BookCorpus as AccelGen uses it (arXiv 2503.13737, as third parties report it): prompts of"
        " 4k to 100k tokens, outputs of at most 2,048. Only ranges are known; log-uniform prompts"
        " (mean 29.8k) and the outputs' median are assumed.",
    ),
    "azure-code": Kind(
        _quantiles(3, 17, 75, 147, 578, 1469, 2744, 5188, 7303, 7436, 7437),
        LengthDistribution((
            (0.0, 6), (0.10, 7), (0.25, 9), (0.50, 13), (0.75, 24), (0.90, 55), (0.95, 90),
            (0.99, 251), (0.995, 359), (0.999, 825), (1.0, 1_899),
        )),
        "Azure LLM inference trace 2023, code (CC-BY-4.0; Splitwise, arXiv 2311.18677, section 3:"
        " medians 1500 and 13). Mean/p50/p95/p99: prompt 2048/1469/7303/7436, output 28/13/90/251.",
    ),
    "azure-chat": Kind(
        LengthDistribution((
            (0.0, 3), (0.05, 100), (0.25, 460), (0.5, 1_020), (0.75, 1_440),
            (0.95, 2_900), (0.99, 4_100), (1.0, 14_000),
        )),
        LengthDistribution((
            (0.0, 5), (0.05, 20), (0.25, 60), (0.5, 129), (0.75, 330), (0.95, 610),
            (0.99, 800), (1.0, 1_000),
        )),
        "Azure LLM inference trace 2023, conversation (Splitwise, arXiv 2311.18677, section 3:"
        " medians 1020 and 129; means of the file 1155 and 211, as later papers state them)."
        " The other quantiles are assumed, chosen to meet those means.",
    ),
    "reasoning": Kind(
        LengthDistribution((
            (0.0, 5), (0.25, 60), (0.5, 208), (0.75, 350), (0.9, 1_300), (0.95, 6_714),
            (0.99, 23_423), (1.0, 48_000),
        )),
        LengthDistribution((
            (0.0, 10), (0.25, 320), (0.5, 792), (0.75, 1_400), (0.95, 5_701),
            (0.99, 12_607), (1.0, 25_000),
        )),
        "DeepSeek-R1 clients of ServeGen (arXiv 2505.09999). Mean/p50/p95/p99: prompt"
        " 1268/208/6714/23423, output 1527/792/5701/12607; the other quantiles are assumed,"
        " chosen to meet the means.",
    ),
    "summary": Kind(
        _quantiles(1, 73, 749, 1242, 1986, 2730, 3370, 3702, 3813, 3933, 4054),
        _quantiles(5, 36, 60, 78, 115, 167, 242, 372, 736, 3271, 4056),
        "arXiv summarisation, at most 4k tokens, as in Vidur (arXiv 2405.05465). Mean/p50/p95/p99:"
        " prompt 2588/2730/3813/3933, output 291/167/736/3271.",
    ),
    "writing": Kind(
        _quantiles(5, 405, 682, 789, 915, 1037, 1178, 1453, 1584, 1800, 3504),
        _quantiles(6, 540, 1017, 1209, 1421, 1601, 1768, 2149, 2342, 2533, 2858),
        "Bilingual web books, at most 4k tokens, as in Vidur (arXiv 2405.05465)."
        " Mean/p50/p95/p99: prompt 1067/1037/1584/1800, output 1613/1601/2342/2533.",
    ),
    "retrieval": Kind(
        LengthDistribution(((0.0, 1_000), (0.5, 3_500), (0.95, 7_000), (1.0, 8_000))),
        LengthDistribution(((0.0, 4), (0.5, 40), (0.95, 150), (1.0, 300))),
        "A question behind a few retrieved passages: long prompts, short outputs. Assumed.",
    ),
    "longdoc": Kind(
        LengthDistribution(((0.0, 10_000), (1.0, 30_000))),
        LengthDistribution(((0.0, 50), (0.5, 250), (0.95, 600), (1.0, 1_000))),
        "A whole document: prompts of 10k to 30k tokens, log-uniform. Assumed.",
    ),
}  # fmt: skip
"""Name → lengths; each ``source`` says what is published and what is assumed."""


def make(
    kind: str, num_requests: int, seed: int, slo_class: str | None = None, scale: float = 1.0
) -> list[WorkloadRequest]:
    """Return *num_requests* requests of one kind, all at 0 s, for :mod:`.arrivals` to spread.

    Args:
        kind: A name in :data:`KINDS`.
        seed: The same seed and kind give the same lengths; of two counts the shorter workload
            is not a prefix of the longer.
        slo_class: Class the requests carry.
        scale: What prompt lengths are multiplied by, to fit a smaller machine.

    Raises:
        UserError: There is no such kind.
    """
    if kind not in KINDS:
        raise UserError(f"There is no synthetic kind {kind!r:.60}; known are {', '.join(KINDS)}.")
    rng = np.random.default_rng([seed, SEED_TAG, zlib.crc32(kind.encode())])
    lengths = KINDS[kind]
    prompts = lengths.prompt.scaled(scale).sample(rng, num_requests)
    outputs = lengths.output.sample(rng, num_requests)
    return [
        WorkloadRequest(f"r{index}", 0.0, int(prompt), int(output), slo_class=slo_class)
        for index, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    ]
