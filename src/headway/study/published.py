"""What the abstracts of the two papers claim, as data.

[P] is an abstract's own number, [S] one that a third party reports of the paper. An attainment that
is some per cent higher is read as points of the share: per cent of a small share would be more.
The abstracts define neither "tail" nor a kept gap, so these have several readings.
"""

from __future__ import annotations

from headway.study.claims import ClaimReading, PaperClaim
from headway.study.paper_grid import FIGURE

THROUGHPUT = FIGURE["throughput"]

CACHEOPT_CLAIMS = (
    PaperClaim(  # [P]
        "tail TBT, times lower",
        3.29,
        "factor",
        (
            ClaimReading("p95 of all gaps", FIGURE["gap p95"]),
            ClaimReading("p99 of all gaps", FIGURE["gap p99"]),
            ClaimReading("p95 of a request's longest gap", FIGURE["longest gap of a request, p95"]),
            ClaimReading("p95 of a request's mean gap", FIGURE["mean gap of a request, p95"]),
        ),
    ),
    PaperClaim(  # [P]
        "tail TTFT, times lower",
        2.83,
        "factor",
        (ClaimReading("p95", FIGURE["TTFT p95"]), ClaimReading("p99", FIGURE["TTFT p99"])),
    ),
    PaperClaim(  # [P]
        "TTFT attainment",
        47,
        "points",
        (ClaimReading("first token in time", FIGURE["TTFT attainment"]),),
    ),
    PaperClaim(  # [P]
        "TBT attainment",
        53,
        "points",
        (
            ClaimReading("99 % of the gaps, no freeze", FIGURE["TBT attainment"]),
            ClaimReading("99 % of the gaps", FIGURE["TBT attainment, plain"]),
            ClaimReading("every gap", FIGURE["TBT attainment, strict"]),
            ClaimReading("the mean gap", FIGURE["TBT attainment, mean gap"]),
        ),
    ),
    PaperClaim(  # [P]
        "arrival rate, times higher",
        1.58,
        "factor",
        (ClaimReading("rate with 90 % kept", None),),
    ),
)

ACCELGEN_CLAIMS = (
    PaperClaim(  # [P]
        "throughput, times higher",
        11.21,
        "factor",
        (
            ClaimReading("output tokens/s, all served", THROUGHPUT),
            ClaimReading("output tokens/s, hopeless refused", THROUGHPUT, "throughput"),
            ClaimReading("the same, whole prompts", THROUGHPUT, "throughput-70b"),
        ),
        least=1.42,
    ),
    PaperClaim(  # [P]
        "goodput, times higher",
        13.71,
        "factor",
        (ClaimReading("kept requests/s", FIGURE["goodput"]),),
        least=1.43,
    ),
    PaperClaim(  # [P]
        "attainment",
        90,
        "points",
        (ClaimReading("all promises of a request", FIGURE["attainment"]),),
        least=37,
    ),
    PaperClaim(  # [P]
        "latency, times lower",
        12.22,
        "factor",
        (
            ClaimReading("mean s/token to the end", FIGURE["normalised latency"]),
            ClaimReading("p50 of completion", FIGURE["JCT p50"]),
            ClaimReading("p95 of completion", FIGURE["JCT p95"]),
        ),
        least=1.61,
    ),
    PaperClaim(  # [P] "near the Oracle", [S] the number, as of the next two.
        "near the oracle: goodput",
        -6,
        "percent",
        (ClaimReading("kept requests/s, worst load", FIGURE["goodput"]),),
        near="oracle",
    ),
    PaperClaim(
        "near the oracle: attainment",
        -1.1,
        "points",
        (ClaimReading("all promises of a request, worst load", FIGURE["attainment"]),),
        near="oracle",
    ),
    PaperClaim(
        "near the oracle: throughput",
        -12,
        "percent",
        (ClaimReading("output tokens/s, worst load", THROUGHPUT),),
        near="oracle",
    ),
)
