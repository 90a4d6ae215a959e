"""A small file of our own in the shape of each known format, all with the same three requests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

START_S = 1_700_000_000
TIMES_S = (0.0, 2.0, 5.0)
LENGTHS = ((40, 7), (33, 2), (64, 9))
CHAINS = ((1, 2, 3), (1, 2, 4), (1, 5, 6, 7))


@dataclass(frozen=True)
class Shape:
    """What a file looks like, and how it is read.

    Attributes:
        said: Part of the line that tells how it was read.
        is_chained: Whether its hashes are kept.
    """

    name: str
    text: str
    said: str
    times_s: tuple[float, ...] = TIMES_S
    is_chained: bool = False
    num_skipped: Mapping[str, int] = field(default_factory=dict)


def _csv(header: str, *rows: str) -> str:
    return "".join(f"{line}\n" for line in (header, *rows))


def _jsonl(*rows: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _timed(scale: float, **more: Any) -> str:
    return _jsonl(
        *(
            {"timestamp": at_s * scale, "input_length": p, "output_length": o, "hash_ids": list(h)}
            | more
            for at_s, (p, o), h in zip(TIMES_S, LENGTHS, CHAINS, strict=True)
        )
    )


def _rows(make: Any) -> list[Any]:
    return [make(at_s, p, o) for at_s, (p, o) in zip(TIMES_S, LENGTHS, strict=True)]


def _aiperf(at_s: float, prompt: int, output: int) -> dict[str, Any]:
    return {
        "metadata": {
            "request_start_ns": (START_S + int(at_s)) * 10**9,
            "benchmark_phase": "profiling",
            "was_cancelled": False,
        },
        "metrics": {
            "input_sequence_length": {"value": prompt, "unit": "tokens"},
            "output_sequence_length": {"value": output, "unit": "tokens"},
        },
        "error": None,
    }


_AIPERF_FAILED = {
    "metadata": {"request_start_ns": START_S * 10**9, "was_cancelled": True},
    "metrics": {"error_isl": {"value": 9, "unit": "tokens"}},
    "error": {"code": 499},
}


def _guidellm(at_s: float, prompt: int, output: int) -> dict[str, Any]:
    return {
        "request_id": str(at_s),
        "request_start_time": START_S + at_s,
        "prompt_tokens": prompt,
        "output_tokens": output,
    }


_VLLM = {
    "date": "20260101-000000",
    "tokenizer_id": "tiny",
    "request_throughput": 1.0,
    "input_lens": [40, 33, 12, 64],
    "output_lens": [7, 2, 0, 9],
    "start_times": [100.0, 102.0, 103.0, 105.0],
    "ttfts": [0.1, 0.1, 0.0, 0.1],
    "itls": [[0.01], [0.01], [], [0.01]],
    "errors": ["", "", "Bad Request", ""],
}

SHAPES = [
    Shape(
        "headway.jsonl",
        _jsonl(
            *_rows(
                lambda at_s, p, o: {
                    "arrived_at_s": at_s,
                    "num_prompt_tokens": p,
                    "num_output_tokens": o,
                }
            )
        ),
        "Headway's own format",
    ),
    Shape(
        "headway.csv",
        _csv(
            "arrived_at_s,num_prompt_tokens,num_output_tokens,slo_class",
            *_rows(lambda at_s, p, o: f"{at_s},{p},{o},"),
        ),
        "Headway's own format",
    ),
    Shape(
        "azure2023.csv",
        _csv(
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            *_rows(lambda at_s, p, o: f"2023-11-16 18:15:4{at_s:.0f}.6805900,{p},{o}"),
        ),
        "an Azure LLM inference trace; times are dates (column TIMESTAMP)",
    ),
    Shape(
        "azure2024.csv",
        _csv(
            "TIMESTAMP,ContextTokens,GeneratedTokens",
            *_rows(lambda at_s, p, o: f"2024-05-10 00:00:0{at_s:.0f}.009930+00:00,{p},{o}"),
        ),
        "an Azure LLM inference trace; times are dates (column TIMESTAMP)",
    ),
    Shape(
        "burstgpt.csv",
        _csv(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type",
            *_rows(lambda at_s, p, o: f"{5 + at_s},GPT-4,{p},{o},{p + o},API log"),
            "11,ChatGPT,30,0,30,Conversation log",
        ),
        "BurstGPT; times in seconds, as the format says (column Timestamp); not read: Model,",
        num_skipped={"with 0 output tokens": 1},
    ),
    Shape(
        "vidur.csv",
        _csv(
            "arrived_at,num_prefill_tokens,num_decode_tokens",
            *_rows(lambda at_s, p, o: f"{at_s},{p},{o}"),
        ),
        "a Vidur trace; times in seconds, as the format says (column arrived_at)",
    ),
    Shape(
        "lengths.csv",
        _csv(
            "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio",
            *_rows(lambda at_s, p, o: f"{p},{o},{p + o},{p / o}"),
        ),
        "lengths alone; no times: all requests come at once",
        times_s=(0.0, 0.0, 0.0),
    ),
    Shape(
        "timed_trace.jsonl",
        _timed(1.0),
        "times read as seconds: the column is timestamp, 3 values span 5",
        is_chained=True,
    ),
    Shape(
        "mooncake.jsonl",
        _timed(1000.0),
        "times read as milliseconds: the column is timestamp, 3 values span 5000",
        is_chained=True,
    ),
    Shape(
        "qwen.jsonl",
        _timed(1.0, chat_id=4, parent_chat_id=-1, turn=1, type="text"),
        "Qwen-Bailian; times in seconds, as the format says",
        is_chained=True,
    ),
    Shape(
        "servegen_offline.jsonl",
        _jsonl(
            *_rows(lambda at_s, p, o: {"input_length": p, "output_length": o, "duration": 14000})
        ),
        "offline lengths; no times: all requests come at once",
        times_s=(0.0, 0.0, 0.0),
    ),
    Shape(
        "servegen.csv",
        _csv(
            "request_id,timestamp,input_tokens,output_tokens",
            *_rows(lambda at_s, p, o: f"{at_s:.0f},{at_s},{p},{o}"),
        ),
        "ServeGen; times read as seconds: the column is timestamp, 3 values span 5",
    ),
    Shape(
        "llmservingsim.jsonl",
        _jsonl(
            *_rows(
                lambda at_s, p, o: {
                    "input_toks": p,
                    "output_toks": o,
                    "arrival_time_ns": int(at_s * 1e9),
                    "input_tok_ids": [1, 2],
                }
            )
        ),
        "LLMServingSim; times in nanoseconds, as the format says (column arrival_time_ns)",
    ),
    Shape(
        "llmservingsim_measured.jsonl",
        _jsonl(
            *reversed(
                _rows(
                    lambda at_s, p, o: {
                        "request_id": f"bench-{at_s:.0f}",
                        "input_toks": p,
                        "output_toks": o,
                        "arrival_time": START_S + at_s,
                    }
                )
            )
        ),
        "a measured LLMServingSim run; sorted by arrival; times in seconds",
    ),
    Shape(
        "aiperf.jsonl",
        _jsonl(_AIPERF_FAILED, *reversed(_rows(_aiperf))),
        "an aiperf export; sorted by arrival; times in nanoseconds",
        num_skipped={"of requests that failed": 1},
    ),
    Shape(
        "guidellm.json",
        json.dumps(
            {
                "metadata": {"version": 1, "guidellm_version": "0.5"},
                "benchmarks": [
                    {
                        "requests": {
                            "successful": _rows(_guidellm),
                            "incomplete": [_guidellm(5.5, 3, 0)],
                            "errored": [],
                        },
                        "metrics": {"request_totals": {"total": 9}},
                    }
                ],
            },
            indent=2,
        ),
        "a sample: 4 of 9 requests are in the file",
        num_skipped={"of requests that failed": 1},
    ),
    Shape(
        "vllm_bench.json",
        json.dumps(_VLLM),
        "the result of vllm bench serve; times in seconds",
        num_skipped={"of requests that failed": 1},
    ),
]

CSV_SHAPES = [shape for shape in SHAPES if shape.name.endswith(".csv")]
