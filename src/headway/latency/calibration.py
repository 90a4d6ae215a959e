"""Step costs from published operator tables, or from the steps a live server ran.

The estimator behind the tables is the optional package ``aiconfigurator-core`` (Apache-2.0):
measured times of matrix products, attention and collectives per GPU, put together to a step.
It knows no engine overhead and is not quite monotone (dips up to 3.3 %); the fit is both
smoother and monotone. Only Python and the tables are needed, no GPU.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from headway.errors import UserError
from headway.latency.fit import error_of, fit
from headway.latency.model import LatencyModel, StepShape
from headway.latency.profile import FitError, StepCost

MOST_STEP_TOKENS, MOST_DECODES, MOST_CONTEXT = 8192, 512, 16_384
"""Bounds of the steps a fit is asked to get right."""

FITTED_STEPS, HELD_OUT_STEPS = 3000, 1000

HOLD_OUT_EVERY = 5
"""Of a live server's steps every fifth judges the fit and takes no part in it."""

LEAST_STEPS = 50
"""Fewer recorded steps than this say little of seven coefficients."""


@dataclass(frozen=True, slots=True)
class EvenStep:
    """A step whose prompts are all alike: the estimator knows sums, so a fit asks for these."""

    num_prefills: int
    chunk_tokens: int
    prefix_tokens: int
    num_decodes: int
    context_tokens: int

    @property
    def shape(self) -> StepShape:
        """What the step computes."""
        pairs = self.num_prefills * self.chunk_tokens * (self.prefix_tokens + self.chunk_tokens / 2)
        return StepShape(
            self.num_prefills * self.chunk_tokens,
            self.num_prefills,
            self.num_decodes,
            self.num_decodes * self.context_tokens,
            pairs,
        )


def draw_steps(num_steps: int, kv_tokens: int, seed: int) -> list[EvenStep]:
    """Return steps of three kinds in turn: decodes, prompts, both; all sizes log-uniform.

    Contexts are cut where all of them would not fit in *kv_tokens* together.
    """
    rng = np.random.default_rng(seed)

    def draw(least: float, most: float) -> int:
        return int(np.exp(rng.uniform(np.log(least), np.log(max(most, least) + 1))))

    steps = []
    for i in range(num_steps):
        decodes = draw(1, MOST_DECODES) if i % 3 != 1 else 0
        context = draw(32, min(MOST_CONTEXT, kv_tokens / decodes)) if decodes else 0
        prefills = draw(1, 8) if i % 3 else 0
        chunk = draw(16, MOST_STEP_TOKENS / prefills) if prefills else 0
        # Half of all prompts are computed in one chunk: nothing lies before it.
        prefix = draw(16, 2 * MOST_CONTEXT / prefills) if prefills and rng.random() < 0.5 else 0
        steps.append(EvenStep(prefills, chunk, prefix, decodes, context))
    return steps


Estimate = Callable[[EvenStep], float]


@dataclass(frozen=True, slots=True)
class Estimator:
    """The estimator for one GPU and model, and what it knows of both."""

    seconds: Estimate
    config: Mapping[str, Any]
    memory_bytes: int
    source: str


def aiconfigurator(model: str, gpu: str, num_gpus: int) -> Estimator:
    """Return the step times of ``aiconfigurator-core`` for vLLM in bfloat16.

    Raises:
        UserError: The package is missing, or knows no such model or GPU.
    """
    try:
        package = importlib.import_module("aiconfigurator_core")
        perf = importlib.import_module("aiconfigurator_core.sdk.rust_engine_step")
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        raise UserError(
            f"Cannot import {error.name}; install the estimator with pip install"
            " 'headway[profiles]'."
        ) from None
    root = Path(str(package.__file__)).parent
    systems = sorted(path.stem for path in (root / "systems").glob("*_*.yaml"))
    system_file = root / "systems" / f"{gpu}.yaml"
    config_file = root / "model_configs" / f"{model.replace('/', '--')}_config.json"
    if "/" in gpu or not system_file.is_file():
        raise UserError(f"--gpu {gpu!r:.60} is not known; such as {', '.join(systems)}.")
    if not config_file.is_file():
        raise UserError(
            f"The model {model!r:.80} is not known; aiconfigurator knows models such as"
            " meta-llama/Meta-Llama-3.1-8B and Qwen/Qwen3-32B."
        )
    slots = yaml.safe_load((root / "systems" / "query_versions.yaml").read_text())
    own = slots["overrides"].get(gpu, {})
    version = own.get("vllm", slots["defaults"]["vllm"])["current"]
    types = dict.fromkeys(
        ("weight_dtype", "moe_dtype", "activation_dtype", "kv_cache_dtype"), "bfloat16"
    )
    sizes = dict.fromkeys(("pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size"), 1)
    asked = {
        "schema_version": 1, "model_name": model, "system_name": gpu, "backend": "vllm",
        "backend_version": version, "tp_size": num_gpus, "kv_block_size": None, "nextn": None,
    }  # fmt: skip
    try:
        native = perf.RustForwardPassPerfModel.from_native({**asked, **sizes, **types})
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"aiconfigurator has no step times for {model} on {num_gpus} x {gpu}: {reason:.200}."
        ) from None
    memory = yaml.safe_load(system_file.read_text())["gpu"]["mem_capacity"]
    return Estimator(
        lambda step: _ask(native, step),
        json.loads(config_file.read_text()),
        int(memory),
        f"aiconfigurator-core {_version()} tables for vLLM {version}, bfloat16",
    )


def _version() -> str:
    return metadata.version("aiconfigurator-core")


def _ask(native: Any, step: EvenStep) -> float:
    requests = {
        "num_prefill_requests": step.num_prefills,
        "sum_prefill_tokens": step.num_prefills * step.chunk_tokens,
        "sum_prefill_kv_tokens": step.num_prefills * step.prefix_tokens,
        "num_decode_requests": step.num_decodes,
        "sum_decode_kv_tokens": step.num_decodes * step.context_tokens,
    }
    metrics = {"version": 1, "scheduled_requests": requests}
    return float(native.estimate_forward_pass_time_ms(metrics)) / 1000.0


def fit_estimate(estimate: Estimate, kv_tokens: int) -> tuple[StepCost, FitError]:
    """Fit a cost to an estimator, and judge it on steps drawn anew."""
    drawn = draw_steps(FITTED_STEPS, kv_tokens, seed=0)
    fresh = draw_steps(HELD_OUT_STEPS, kv_tokens, seed=1)
    cost = fit([step.shape for step in drawn], [estimate(step) for step in drawn])
    return cost, error_of(cost, [s.shape for s in fresh], [estimate(s) for s in fresh])


def fit_steps(shapes: Sequence[StepShape], seconds: Sequence[float]) -> tuple[StepCost, FitError]:
    """Fit a cost to steps that ran, and judge it on every fifth of them, kept apart.

    No step is free: steps without variety (of one request at a time, say) fit as well with
    nothing but a cost a decode or a context token. Then half of the shortest step is what any
    step costs, and the fit explains the rest.

    Raises:
        UserError: There are too few of them.
    """
    pairs = [p for p in zip(shapes, seconds, strict=True) if p[1] > 0]
    if len(pairs) < LEAST_STEPS:
        raise UserError(
            f"{len(pairs)} steps are too few to fit a profile; at least {LEAST_STEPS} are needed."
        )
    apart = pairs[::HOLD_OUT_EVERY]
    used = [pair for i, pair in enumerate(pairs) if i % HOLD_OUT_EVERY]
    cost = fit([s for s, _ in used], [t for _, t in used])
    floor_s = min(t for _, t in pairs) / 2.0
    if cost.fixed_s + cost.per_token_s < 1e-6 * floor_s:  # Nothing but what rounding left.
        above = fit([s for s, _ in used], [t - floor_s for _, t in used])
        cost = replace(above, fixed_s=above.fixed_s + floor_s)
    return cost, error_of(cost, [s for s, _ in apart], [t for _, t in apart])


class Listener(LatencyModel):
    """A latency model that predicts nothing and keeps what it is shown."""

    def __init__(self) -> None:
        self.shapes: list[StepShape] = []
        self.seconds: list[float] = []

    def predict_s(self, shape: StepShape) -> float:
        """Return a token value: no plan is ever asked for."""
        return 0.01

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return no margin."""
        return 1.0

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return no doubt."""
        return 0.0

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Keep one step."""
        self.shapes.append(shape)
        self.seconds.append(duration_s)
