"""``headway calibrate``: a step-time profile from tables, from a live server, or by hand."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headway.cli import values
from headway.cli.values import save, writable, write
from headway.errors import UserError
from headway.latency import calibration as source
from headway.latency import model_shapes as sizes
from headway.latency.profile import FitError, Profile, StepCost
from headway.study.history import History
from headway.workloads.record_files import rows, run_of


@click.command()
@click.option(
    "--from-aiconfigurator", "tables", metavar="MODEL",
    help="From published tables, such as meta-llama/Meta-Llama-3.1-8B (extra: profiles).",
)  # fmt: skip
@click.option(
    "--from-steps", "recording", type=click.Path(path_type=Path), metavar="FILE",
    help='From a live server that ran with --additional-config {"headway":{"record":"FILE"}}.',
)  # fmt: skip
@click.option(
    "--from-roofline", "config", type=click.Path(path_type=Path), metavar="CONFIG.JSON",
    help="From a model's config.json and what the GPU sustains (the next three).",
)  # fmt: skip
@click.option("--flops-per-s", type=click.FloatRange(1e6, 1e20), help="Sustained FLOPs.")
@click.option("--bytes-per-s", type=click.FloatRange(1e6, 1e20), help="Sustained bandwidth.")
@click.option("--memory-bytes", type=click.IntRange(1), help="Memory of one GPU.")
@click.option("--gpu", help="Name, e.g. h100_sxm, a100_sxm, l40s [recorded steps: any].")
@click.option("--tp", default=1, show_default=True, type=click.IntRange(1, 64), help="GPUs.")
@click.option("--model", help="Model name in the profile [--from-aiconfigurator: MODEL].")
@click.option("--name", help="Name of the profile [from model, GPU and --tp].")
@click.option("--kv-tokens", type=click.IntRange(1), help="KV capacity [computed].")
@click.option("--kv-bytes-per-token", type=click.IntRange(1), help="[computed]")
@click.option("--note", multiple=True, help="An assumption to write into the profile.")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The profile, a .json file."
)
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Summary as JSON.")
def calibrate(
    tables: str | None,
    recording: Path | None,
    config: Path | None,
    flops_per_s: float | None,
    bytes_per_s: float | None,
    memory_bytes: int | None,
    gpu: str | None,
    tp: int,
    model: str | None,
    name: str | None,
    kv_tokens: int | None,
    kv_bytes_per_token: int | None,
    note: tuple[str, ...],
    out: Path,
    json_path: Path | None,
) -> None:
    """Write a profile: the step times of simulations and capacity plans."""
    if sum(given is not None for given in (tables, recording, config)) != 1:
        raise UserError(
            "Give one of --from-aiconfigurator, --from-steps and --from-roofline, and only one."
        )
    writable(out, json_path)
    if out.suffix != ".json":
        raise UserError(f"--out must end in .json, for that is how a profile is told: {out}.")
    given = ProfileDetails(gpu, tp, model, name, kv_tokens, kv_bytes_per_token, note)
    if tables is not None:
        profile = _from_tables(tables, given)
    elif recording is not None:
        profile = _from_steps(recording, given)
    else:
        assert config is not None
        profile = _from_roofline(config, given, flops_per_s, bytes_per_s, memory_bytes)
    write(out, profile.to_json())
    _report(Console(), profile, out)
    save(json_path, {"schema": 1, "profile": str(out), **asdict(profile)})


@dataclass(frozen=True, slots=True)
class ProfileDetails:
    """What the user said about the profile besides where it comes from."""

    gpu: str | None
    num_gpus: int
    model: str | None
    name: str | None
    kv_tokens: int | None
    kv_bytes_per_token: int | None
    notes: tuple[str, ...]

    def gpu_or_fail(self, flag: str) -> str:
        """Return the GPU, which *flag* cannot do without."""
        if not self.gpu:
            raise UserError(f"{flag} needs --gpu, such as h100_sxm, a100_sxm or l40s.")
        return self.gpu

    def name_of(self, model: str, gpu: str) -> str:
        """Return ``llama-3.1-70b@h100x4`` for Meta-Llama-3.1-70B on four of h100_sxm."""
        short = model.rpartition("/")[2].lower().removeprefix("meta-")
        board = gpu.removesuffix("_sxm").removesuffix("_server").replace("_", "-")
        return self.name or f"{short}@{board}" + (f"x{self.num_gpus}" if self.num_gpus > 1 else "")


def _from_tables(model: str, given: ProfileDetails) -> Profile:
    gpu = given.gpu_or_fail("--from-aiconfigurator")
    logging.disable(logging.WARNING)  # It warns of tables of other models, which nobody asked for.
    try:
        estimator = source.aiconfigurator(model, gpu, given.num_gpus)
        kv_tokens, kv_bytes, assumptions = _kv_of(
            estimator.config, model, gpu, estimator.memory_bytes, given
        )
        cost, error = source.fit_estimate(estimator.seconds, kv_tokens)
    finally:
        logging.disable(logging.NOTSET)
    again = f"headway calibrate --from-aiconfigurator {model} --gpu {gpu} --tp {given.num_gpus}"
    return _profile(
        given, model, gpu, cost, error, (kv_tokens, kv_bytes),
        sizes.batch_defaults(estimator.memory_bytes, gpu),
        f"{estimator.source}; {again}",
        ("No engine overhead: the step is the GPU's time alone.",
         "Steps with prompts and decodes are composed of measured operators, not measured.",
         *assumptions),
    )  # fmt: skip


def _from_roofline(
    config_file: Path,
    given: ProfileDetails,
    flops_per_s: float | None,
    bytes_per_s: float | None,
    memory_bytes: int | None,
) -> Profile:
    gpu = given.gpu_or_fail("--from-roofline")
    if flops_per_s is None or bytes_per_s is None or memory_bytes is None:
        raise UserError("--from-roofline needs --flops-per-s, --bytes-per-s and --memory-bytes.")
    if math.isnan(flops_per_s + bytes_per_s):  # The only number no range of click's refuses.
        raise UserError("--flops-per-s and --bytes-per-s must be numbers, not nan.")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read {config_file}: {error.strerror}.") from None
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise UserError(f"{config_file} must be a model's config.json.")
    model = given.model or config_file.absolute().parent.name
    shapes = sizes.ModelShapes.from_config(config, model)
    kv_tokens, kv_bytes, assumptions = _kv_of(config, model, gpu, memory_bytes, given)
    cost = sizes.roofline(shapes, flops_per_s, bytes_per_s, given.num_gpus)
    return _profile(
        given, model, gpu, cost, None, (kv_tokens, kv_bytes),
        sizes.batch_defaults(memory_bytes, gpu),
        f"Roofline of {shapes.num_matmul_params / 1e9:.2f}e9 weights a token, bfloat16;"
        f" headway calibrate --from-roofline config.json --gpu {gpu} --tp {given.num_gpus}"
        f" --flops-per-s {flops_per_s:g} --bytes-per-s {bytes_per_s:g}"
        f" --memory-bytes {memory_bytes} --model {model}"
        + (f" --kv-tokens {given.kv_tokens}" if given.kv_tokens else ""),
        (f"Sustained: {flops_per_s / 1e12:.4g} Tflop/s and {bytes_per_s / 1e9:.4g} GB/s a GPU.",
         f"{sizes.EXPOSED:.0%} of the arithmetic below the knee adds to reading the weights.",
         "No engine overhead, no cost of communication between GPUs.", *assumptions),
    )  # fmt: skip


def _kv_of(
    config: Mapping[str, Any], model: str, gpu: str, memory_bytes: int, given: ProfileDetails
) -> tuple[int, int, tuple[str, ...]]:
    """Return capacity, bytes a token, and how the capacity was come by."""
    if given.kv_tokens is not None and given.kv_bytes_per_token is not None:
        return given.kv_tokens, given.kv_bytes_per_token, ("KV capacity as given.",)
    shapes = sizes.ModelShapes.from_config(config, model)
    kv_bytes = given.kv_bytes_per_token or shapes.kv_bytes_per_token
    if given.kv_tokens is not None:
        return given.kv_tokens, kv_bytes, ("KV capacity as given.",)
    kv_tokens = sizes.kv_capacity_tokens(shapes, memory_bytes, gpu, given.num_gpus)
    if not kv_tokens:
        raise UserError(f"{model} does not fit on {given.num_gpus} x {gpu}; raise --tp.")
    return kv_tokens, kv_bytes, (
        f"KV capacity: {memory_bytes} bytes a GPU x {sizes.GPU_MEMORY_SHARE}, less weights,"
        f" {sizes.ENGINE_BYTES} bytes for the engine, widest activations and logits.",
    )  # fmt: skip


def _profile(
    given: ProfileDetails,
    model: str,
    gpu: str,
    cost: StepCost,
    error: FitError | None,
    kv: tuple[int, int],
    limits: tuple[int, int],
    origin: str,
    assumptions: tuple[str, ...],
) -> Profile:
    return Profile(
        name=given.name_of(model, gpu),
        gpu=gpu, model=given.model or model, parallelism=f"tp{given.num_gpus}", cost=cost,
        kv_bytes_per_token=kv[1],
        kv_capacity_tokens=kv[0],
        max_num_batched_tokens=limits[0],
        max_num_seqs=limits[1],
        source=origin,
        assumptions=(*assumptions, *given.notes),
        error=error,
    )  # fmt: skip


def _from_steps(recording: Path, given: ProfileDetails) -> Profile:
    history = History.of(rows(run_of(recording)))
    found = history.profile()
    gpu, model = given.gpu or "this-machine", given.model or found.model
    kv_tokens = given.kv_tokens or found.kv_capacity_tokens
    if not kv_tokens:
        raise UserError(f"{recording} does not say how large the KV cache was; give --kv-tokens.")
    return replace(
        found,
        name=given.name_of(model, gpu),
        gpu=gpu,
        model=model,
        parallelism=f"tp{given.num_gpus}",
        kv_capacity_tokens=kv_tokens,
        kv_bytes_per_token=given.kv_bytes_per_token or found.kv_bytes_per_token,
        assumptions=(*found.assumptions, *given.notes),
    )


def _report(console: Console, profile: Profile, out: Path) -> None:
    table = values.table(profile.name, ["a step takes, for"], ["µs"])
    knee = profile.cost.knee_tokens
    rows = {
        "nothing in it": profile.cost.fixed_s,
        f"a token, up to {knee}": profile.cost.per_token_s,
        f"a token, above {knee}": profile.cost.per_token_above_s,
        "1,000 KV tokens read": 1000 * profile.cost.per_context_s,
        "a decode": profile.cost.per_decode_s,
        "1,000 chunk x context": 1000 * profile.cost.per_pair_s,
        "a prompt": profile.cost.per_prefill_s,
    }
    for part, seconds in rows.items():
        table.add_row(part, f"{seconds * 1e6:,.2f}")
    console.print(table)
    error = profile.error
    if error is not None:
        console.print(
            f"Off on {error.num_steps} held-out steps: median {error.median:.1%},"
            f" mean {error.mean:.1%}, p95 {error.p95:.1%}.",
            highlight=False,
        )
    console.print(
        f"KV: {profile.kv_capacity_tokens:,} tokens; steps of up to"
        f" {profile.max_num_batched_tokens} tokens and {profile.max_num_seqs} requests.\n"
        f"Profile: {out}", highlight=False, markup=False,
    )  # fmt: skip
