"""Shipped step-time profiles: what they say, how surely, and what a broken file gets told."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.latency import fit, model_shapes, profile
from headway.latency.model import StepShape
from headway.latency.profile import Profile, StepCost
from headway.workloads.public import traces

NAMES = profile.names()

TABLE_SHAPES = (
    StepShape(0, 0, 1, 512),
    StepShape(0, 0, 32, 32 * 1024),
    StepShape(0, 0, 128, 128 * 1024),
    StepShape().with_chunk(512, 0),
    StepShape().with_chunk(2048, 0),
    StepShape().with_chunk(8192, 0),
    StepShape(0, 0, 64, 64 * 1024).with_chunk(2048, 0),
)
"""Decode 1 x 512, 32 x 1k, 128 x 1k; prompts of 512, 2048, 8192; 2048 beside 64 x 1k."""

TABLE_MS = {
    "llama-3.1-8b@h100": (6.17, 8.32, 12.83, 12.02, 43.51, 199.72, 48.71),
    "llama-3.1-8b@a100": (11.82, 15.58, 24.75, 35.99, 125.19, 556.95, 134.91),
    "llama-3.1-8b@l40s": (21.96, 31.42, 53.28, 38.27, 144.89, 699.83, 164.69),
    "llama-3.1-70b@h100x4": (14.85, 16.91, 22.80, 37.31, 130.18, 576.76, 141.86),
    "llama-3.1-70b@a100x4": (27.12, 33.11, 45.91, 105.35, 337.23, 1371.53, 352.46),
    "qwen3-32b@h100": (24.30, 30.01, 39.98, 50.93, 186.04, 864.92, 211.24),
    "qwen3-32b@rtx-pro-6000x2": (24.21, 28.78, 44.34, 71.39, 270.62, 1127.75, 281.99),
}
"""aiconfigurator-core 0.12.0, vLLM 0.24.0 (A100: 0.14.0), bfloat16, milliseconds a step."""

LLAMA_8B = model_shapes.ModelShapes(32, 4096, 32, 8, 128, 14_336, 128_256)
LLAMA_70B = model_shapes.ModelShapes(80, 8192, 64, 8, 128, 28_672, 128_256)
QWEN_32B = model_shapes.ModelShapes(64, 5120, 64, 8, 128, 25_600, 151_936)
OPT_13B = model_shapes.ModelShapes(40, 5120, 40, 40, 128, 20_480, 50_272, 2, True)


@pytest.mark.parametrize("name", NAMES)
def test_each_says_where_it_comes_from(name: str) -> None:
    """A shipped profile has its own name, a source, assumptions, and an error unless a roofline."""
    found = profile.load(name)
    assert found.name == name
    assert "headway calibrate --from-" in found.source
    assert found.assumptions
    assert (found.error is None) == found.source.startswith("Roofline")
    if found.error is not None:
        assert found.error.num_steps == 1000
        assert found.error.median < 0.03
        assert found.error.mean < 0.035


def test_the_tables_are_reproduced() -> None:
    """Of 49 known steps 47 lie within the p95 error their profile states, all within 1.25 of it."""
    shares = []
    for name, row_ms in TABLE_MS.items():
        found = profile.load(name)
        assert found.error is not None
        for shape, expected_ms in zip(TABLE_SHAPES, row_ms, strict=True):
            off = abs(found.step_s(shape) * 1000 / expected_ms - 1)
            shares.append(off / found.error.p95)
    assert max(shares) < 1.25
    assert sum(share <= 1 for share in shares) >= 47


MEASURED = traces() / "aiconfigurator" / "silicon_sample.csv"


def a_token_s(found: Profile, decodes: int, prompt: int, output: int) -> float:
    """Return the time a token at a steady load: all decodes, and the prompts' share."""
    decoding = StepShape(0, 0, decodes, int(decodes * (prompt + output / 2)))
    step_s = found.step_s(decoding)
    return step_s + (found.step_s(decoding.with_chunk(prompt, 0)) - step_s) * decodes / output


@pytest.mark.skipif(not MEASURED.is_file(), reason="needs the measured rows: HEADWAY_TRACES")
@pytest.mark.parametrize(
    ("name", "where", "num_rows", "mean"),
    [
        ("llama-3.1-8b@h100", ("Llama-3.1-8B-Instruct", "trtllm", "1"), 42, 0.04),
        ("qwen3-32b@h100x2", ("Qwen3-32B", "vllm", "2"), 30, 0.13),
    ],
)
def test_against_measured_servers(
    name: str, where: tuple[str, str, str], num_rows: int, mean: float
) -> None:
    """The time a token of real H100 servers is met without fitting anything to them."""
    found = profile.load(name)
    errors = []
    with MEASURED.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            model = row["model_path"].rpartition("/")[2]
            if (model, row["backend"], row["tp_size"]) != where or row["system"] != "h100_sxm":
                continue
            decodes, prompt, output = (int(row[n]) for n in ("batch_size", "isl", "osl"))
            if row["precision"] == "" and decodes <= 128:
                predicted_s = a_token_s(found, decodes, prompt, output)
                errors.append(abs(predicted_s * 1000 / float(row["silicon_tpot_ms"]) - 1))
    assert len(errors) == num_rows
    assert sum(errors) / num_rows < mean


def test_units_are_seconds_and_tokens() -> None:
    """Each coefficient multiplies its own size, below the knee and above it."""
    cost = StepCost(100, 1.0, 0.01, 0.02, 1e-4, 0.1, 1e-6, 0.5)
    below = StepShape(0, 0, 10, 3000).with_chunk(90, 40)
    assert cost.step_s(below) == pytest.approx(1 + 1.0 + 0.3 + 1.0 + 90 * 85e-6 + 0.5)
    above = StepShape(0, 0, 10, 3000).with_chunk(190, 0)
    assert cost.step_s(above) == pytest.approx(1 + 1.0 + 2.0 + 0.3 + 1.0 + 190 * 95e-6 + 0.5)
    assert cost.step_s(StepShape()) == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_fast_way_is_the_dot_product(name: str) -> None:
    """The spelled-out sum equals the row of sizes times the coefficients."""
    cost = profile.load(name).cost
    _, *coefficients = dataclasses.astuple(cost)
    for shape in (*TABLE_SHAPES, StepShape(), StepShape(0, 0, 3, 90).with_chunk(7, 5)):
        row = fit.row_of(shape, cost.knee_tokens)
        twin_s = sum(size * each for size, each in zip(row, coefficients, strict=True))
        assert cost.step_s(shape) == pytest.approx(twin_s)


sizes = st.tuples(
    st.integers(0, 9000), st.integers(0, 512), st.integers(0, 500_000), st.integers(0, 100_000)
)


@given(st.sampled_from(NAMES), sizes, sizes)
def test_a_step_never_shrinks_as_it_grows(
    name: str, one: tuple[int, ...], more: tuple[int, ...]
) -> None:
    """More prompt tokens, decodes, contexts or prefix never make a step shorter."""
    found = profile.load(name)

    def step_s(chunk: int, decodes: int, context: int, prefix: int) -> float:
        return found.step_s(StepShape(0, 0, decodes, context).with_chunk(chunk, prefix))

    for i in range(4):
        bigger = list(one)
        bigger[i] += more[i]
        assert step_s(*bigger) >= step_s(*one) > 0


@pytest.mark.parametrize(
    ("name", "kv_bytes", "defaults"),
    [
        ("llama-3.1-8b@h100", 131_072, (8192, 1024)),
        ("llama-3.1-8b@a100", 131_072, (2048, 256)),
        ("llama-3.1-70b@a100x4", 327_680, (2048, 256)),
        ("qwen3-32b@rtx-pro-6000x2", 262_144, (8192, 1024)),
        ("opt-13b@a100", 819_200, (2048, 256)),
    ],
)
def test_kv_bytes_and_vllm_defaults(name: str, kv_bytes: int, defaults: tuple[int, int]) -> None:
    """KV a token follows from the model's shapes, the step limits from the class of the GPU."""
    found = profile.load(name)
    assert found.kv_bytes_per_token == kv_bytes
    assert (found.max_num_batched_tokens, found.max_num_seqs) == defaults


def test_the_shapes_of_known_models() -> None:
    """Weights and KV of published models, by their published parameter counts."""
    for model, billions, kv_bytes in (
        (LLAMA_8B, 8.03, 131_072), (LLAMA_70B, 70.55, 327_680),
        (QWEN_32B, 32.76, 262_144), (OPT_13B, 12.85, 819_200),
    ):  # fmt: skip
        assert model.weight_bytes / 2e9 == pytest.approx(billions, rel=2e-3)
        assert model.kv_bytes_per_token == kv_bytes


def test_kv_capacity_against_a_measured_one() -> None:
    """vLLM 0.19 reported 41,408 KV tokens for Llama-3.1-8B on an RTX 4090; we say so within 1 %."""
    capacity = model_shapes.kv_capacity_tokens(LLAMA_8B, 25_250_627_584, "rtx_4090", 1)
    assert capacity == pytest.approx(41_408, rel=0.01)
    assert profile.load("llama-3.1-8b@rtx-4090").kv_capacity_tokens == capacity


def test_the_papers_kv() -> None:
    """OPT-13B holds the 12 GB of KV that the papers gave it."""
    found = profile.load("opt-13b@a100")
    assert found.kv_capacity_tokens * found.kv_bytes_per_token == pytest.approx(12e9, rel=1e-4)


@pytest.mark.parametrize(
    ("name", "model", "flops_per_s", "bytes_per_s"),
    [
        ("opt-13b@a100", OPT_13B, 257e12, 1264e9),
        ("llama-3.1-8b@rtx-4090", LLAMA_8B, 149e12, 796e9),
    ],
)
def test_rooflines_follow_from_their_assumptions(
    name: str, model: model_shapes.ModelShapes, flops_per_s: float, bytes_per_s: float
) -> None:
    """A shipped roofline is what its written-down rates and shapes give, to the digit."""
    found = profile.load(name)
    assert found.cost == model_shapes.roofline(model, flops_per_s, bytes_per_s)
    written = f"{flops_per_s / 1e12:g} Tflop/s and {bytes_per_s / 1e9:g} GB/s"
    assert any(written in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("gpu", "name", "mean"),
    [("a100", "llama-3.1-8b@a100", 0.07), ("l40s", "llama-3.1-8b@l40s", 0.06)],
)
def test_a_roofline_is_near_the_tables(gpu: str, name: str, mean: float) -> None:
    """With the rates of a GPU, a roofline of the 8B model comes near the profile of that GPU."""
    rates = {"a100": (257e12, 1264e9), "l40s": (199e12, 683e9)}
    rough = model_shapes.roofline(LLAMA_8B, *rates[gpu])
    found = profile.load(name)
    steps = [
        StepShape(0, 0, decodes, decodes * 1000).with_chunk(chunk, 0)
        for decodes in (0, 1, 16, 64)
        for chunk in (0, 64, 256, 512, 2048)
        if decodes + chunk
    ]
    assert fit.error_of(rough, steps, [found.step_s(s) for s in steps]).mean < mean


def test_a_file_survives_the_round_trip(tmp_path: Path) -> None:
    """A written profile loads back equal, by path as text or as Path."""
    found = profile.load("qwen3-32b@h100")
    path = tmp_path / "mine.json"
    path.write_text(found.to_json(), encoding="utf-8")
    assert profile.load(path) == profile.load(str(path)) == found


def test_unknown_names_are_answered_with_the_known() -> None:
    """A name that is not shipped gets all that are; a missing file gets the reason."""
    with pytest.raises(UserError, match=r"'h200' is not known; .*llama-3.1-8b@h100.*opt-13b@a100"):
        profile.load("h200")
    with pytest.raises(UserError, match=r"Cannot read the profile nowhere/x\.json: No such file"):
        profile.load("nowhere/x.json")


def changed(*path: str, value: Any = None, drop: bool = False) -> str:
    """Return the text of a good profile with one thing wrong."""
    row = json.loads(profile.load("llama-3.1-8b@h100").to_json())
    inner = row
    for key in path[:-1]:
        inner = inner[key]
    if drop:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(row)


FREE = [field.name for field in dataclasses.fields(StepCost)]
BAD = [
    ("{", "is not JSON"),
    ('{"schema": 2}', 'must say "schema": 1'),
    (changed("kv_capacity_tokens", drop=True), "lacks 'kv_capacity_tokens'"),
    (changed("cost", "per_pair_s", drop=True), "cost lacks 'per_pair_s'"),
    (changed("cost", value=3), "cost must be a JSON object"),
    (changed("cost", "per_token_s", value=-1e-6), "per_token_s must be a finite number"),
    (changed("cost", "per_token_s", value=math.nan), "per_token_s must be a finite number"),
    (changed("cost", "fixed_s", value=math.inf), "fixed_s must be a finite number"),
    (changed("cost", "fixed_s", value="6 ms"), "fixed_s must be a finite number"),
    (changed("cost", value=dict.fromkeys(FREE, 0) | {"knee_tokens": 64}), "or a step is free"),
    (changed("cost", "knee_tokens", value=0), "knee_tokens must be a whole number of at least 1"),
    (changed("cost", "speed", value=1), "unknown field 'speed'"),
    (changed("kv_capacity_tokens", value=1.5), "must be a whole number"),
    (changed("max_num_seqs", value=0), "max_num_seqs must be a whole number of at least 1"),
    (changed("gpu", value=4), "gpu must be text"),
    (changed("assumptions", value="none"), "assumptions must be a list of sentences"),
    (changed("error", "p95", value=-1), "error: p95 must be"),
]


@pytest.mark.parametrize(("text", "says"), BAD, ids=[says for _, says in BAD])
def test_a_bad_file_gets_one_sentence(text: str, says: str) -> None:
    """Each mistake in a profile's file is named in one sentence that ends with a full stop."""
    with pytest.raises(UserError) as caught:
        profile.parse(text, "my.json")
    sentence = str(caught.value)
    assert re.fullmatch(r"The profile my\.json.*\.", sentence)
    assert says in sentence


def test_optional_fields_may_be_left_out() -> None:
    """A hand-written profile needs neither assumptions nor an error."""
    row = json.loads(changed("error", drop=True))
    del row["assumptions"]
    found = profile.parse(json.dumps(row), "mine")
    assert found.error is None
    assert found.assumptions == ()
