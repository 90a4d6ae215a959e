"""``headway replay``: what another policy, cache or GPU would have made of a recorded run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headway import registry
from headway.cli.run_options import (
    bands_of,
    policies_of,
    run_options,
    seeds_of,
    spec_of,
)
from headway.cli.simulate import table_of, targets_of, too_long_of
from headway.cli.trace_options import OPTION_NAMES
from headway.cli.values import is_given, progress, save, say, whole, writable
from headway.errors import UserError
from headway.study import recorded
from headway.study.recorded import RecordedRun
from headway.study.spec import STOCK, STOCK_WAYS, Machine, RunSpec
from headway.study.sweep import FinishedRuns, Run, run_all
from headway.workloads.record_files import run_of

AS_RECORDED = "the recorded machine"

SAID_BY_THE_RECORDING = ("trace", "workload", "slo", "requests", "arrivals", *OPTION_NAMES)
"""Options of other virtual runs that are a mistake here, and not in the help."""


@click.command()
@click.argument("recording", type=click.Path(path_type=Path))
@run_options
@click.option("--kv-scale", type=click.FloatRange(0.001, 1000), help="Factor on the KV cache.")
@click.option("--verify", is_flag=True, help="Only check for identical plans.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for whole runs, to report.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Summaries as JSON.")
def replay(
    recording: Path,
    kv_scale: float | None,
    verify: bool,
    keep: Path | None,
    json_path: Path | None,
    **given: Any,
) -> None:
    """Serve the requests of RECORDING again, at their own times, with other policies.

    RECORDING is the folder of headway serve --record (its newest run, or FOLDER/RUN), one file of
    a recording, or a run that simulate --keep wrote. Machine and policy are the recorded ones
    where no option says otherwise; step times come from the recorded steps, or from --gpu.

    The table begins with what really happened. The line below it ("again") is the recorded policy
    on the recorded machine, simulated: compare the others with that one, and it with what happened
    to see how well the simulation fits.

    With --verify nothing is compared: a fresh core must repeat all recorded plans to the byte.
    """
    _check(given, kv_scale)
    writable(json_path, keep)
    if verify:
        count = recorded.verify(run_of(recording))
        click.echo(f"A fresh core makes the same {count} plans, to the byte.")
        return
    found = recorded.read(recording)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        base, policies = _chosen(found, given, Path(folder), kv_scale)
        runs, again = _runs(console, base, policies, _as_recorded(found, base), given, keep)
    shown = [found.happened | {"policy": "happened", "rate_rps": None, "step_time_band": 0.0}]
    if again is not None:
        shown.append(again | {"policy": f"{again['policy']} again"})
    shown += [run for run in runs if run is not again]
    console.print(table_of(shown, _title(recording, found, base)))
    say(console, (*_remarks(found), *too_long_of(runs), *targets_of(shown)))
    document = {"schema": 1, "runs": runs, "recorded": found.happened, "same_machine": again}
    save(json_path, document)


for option in replay.params:
    if isinstance(option, click.Option) and option.name in SAID_BY_THE_RECORDING:
        option.hidden = True


def _check(given: Mapping[str, Any], kv_scale: float | None) -> None:
    """See that nothing is said that the recording says.

    Raises:
        UserError: Something is.
    """
    for flag in SAID_BY_THE_RECORDING:
        if given[flag]:
            raise UserError(_makes_no_sense(flag))
    if kv_scale is not None and given["kv_tokens"] is not None:
        raise UserError("Give either --kv-tokens or --kv-scale, not both.")


def _runs(
    console: Console,
    base: RunSpec,
    policies: Sequence[str],
    same: RunSpec | None,
    given: Mapping[str, Any],
    keep: Path | None,
) -> tuple[list[Run], Run | None]:
    """Return the runs that were asked for, and that of the recorded policy on its own machine."""
    specs = [
        replace(band, policy=policy, options={} if policy == STOCK else band.options).at(None, seed)
        for band in bands_of(base, given["step_time_band"])
        for policy in policies
        for seed in seeds_of(given["seeds"])
    ]
    if keep is not None:
        keep.mkdir(exist_ok=True)
    workers = whole("--workers", given["workers"])
    baseline = [same] if same is not None and same.key() not in {s.key() for s in specs} else []
    with progress(console, "replay", len(specs) + len(baseline)) as advance:
        done = run_all(
            [*specs, *baseline], FinishedRuns(keep=keep), workers, lambda s, r: advance()
        )
    return [done[spec.key()] for spec in specs], done[same.key()] if same is not None else None


def _makes_no_sense(flag: str) -> str:
    option = f"--{flag.replace('_', '-')}"
    if flag in OPTION_NAMES:
        return (
            f"{option} is about trace files, and replay reads recordings, which leave nothing open;"
            " a trace goes to headway simulate --trace."
        )
    return f"{option} makes no sense here: the recording says all of it."


def _chosen(
    found: RecordedRun, given: dict[str, Any], folder: Path, kv_scale: float | None
) -> tuple[RunSpec, list[str]]:
    """Return the run that was asked for, and the policies; its files go into *folder*.

    Raises:
        UserError: An option is wrong.
    """
    given = dict(given)
    given["trace"] = str(found.save(folder))
    given["slo"] = str(folder / "slo.toml")
    gpu = given["gpu"] if is_given("gpu") else _gpu_of(found, folder) or given["gpu"]
    start = _start_of(found)
    for name in ("policy", "overload"):
        if not is_given(name):
            given[name] = start.get(name, given[name])
    same_policy = given["policy"] == start.get("policy")
    if not is_given("policy_options") and same_policy and start.get("options"):
        given["policy_options"] = json.dumps(start["options"])
    base = spec_of({**given, "gpu": gpu})
    policies = policies_of(given["policy"], base.engine, base.overload, dict(base.options))
    tuned = [policy for policy in policies if policy in STOCK_WAYS[1:]]
    if tuned:
        raise UserError(f"{tuned[0]} is a sweep: headway trace convert, then simulate.")
    machine = _machine_of(found, gpu)
    kv_tokens = base.machine.kv_tokens or machine.kv_tokens
    if kv_scale is not None:
        if machine.kv_tokens is None:
            raise UserError("The recording does not say how large its KV cache was: --kv-tokens.")
        kv_tokens = max(round(machine.kv_tokens * kv_scale), 1)
    wanted = replace(base.machine, kv_tokens=kv_tokens)
    for name, option in _FROM_RECORDING.items():
        if not is_given(option):
            wanted = replace(wanted, **{name: getattr(machine, name)})
    return replace(base, machine=wanted), policies


_FROM_RECORDING = {
    "block_size": "block_size",
    "max_num_seqs": "max_num_seqs",
    "asynchronous": "asynchronous",
    "host_tokens": "host_kv_tokens",
    "copy_gib_per_s": "copy_gib_s",
}
"""Field of the machine → option that says otherwise."""


def _start_of(found: RecordedRun) -> Mapping[str, Any]:
    """Return what is known of the recorded policy."""
    start = found.history.start if found.history is not None else found.kept_spec or {}
    return start if start.get("policy") in registry.names() else {}


def _gpu_of(found: RecordedRun, folder: Path) -> str | None:
    """Return the recorded machine's profile: a file in *folder*, or a name; if it is known."""
    if found.history is None:
        return str((found.kept_spec or {}).get("machine", {}).get("gpu") or "") or None
    if not found.history.tells_speed:
        return None
    path = folder / "recorded.json"
    path.write_text(found.history.profile().to_json(), encoding="utf-8")
    return str(path)


def _machine_of(found: RecordedRun, gpu: str) -> Machine:
    if found.history is not None:
        return found.history.machine(gpu)
    return replace(Machine(**(found.kept_spec or {}).get("machine", {"gpu": gpu})), gpu=gpu)


def _as_recorded(found: RecordedRun, base: RunSpec) -> RunSpec | None:
    """Return the recorded policy on the recorded machine; ``None`` where it is not known.

    A kept run is what happened and what is simulated at once: it has no such line.
    """
    start = _start_of(found)
    if found.history is None or not start:
        return None
    return replace(
        base,
        policy=start["policy"],
        overload=start["overload"],
        options=start["options"],
        machine=found.history.machine(base.machine.gpu),
    ).at(None, base.load.seed)


def _title(recording: Path, found: RecordedRun, base: RunSpec) -> str:
    machine = base.machine
    is_own = found.history is not None and Path(machine.gpu).name == "recorded.json"
    where = "vLLM's scheduler" if base.engine == "vllm" else "Headway's simulator"
    gpu = AS_RECORDED if is_own else machine.gpu
    return f"{recording} on {gpu}, {machine.kv_tokens} KV tokens, {where}"


def _remarks(found: RecordedRun) -> Iterator[str]:
    """Yield what the reader of the table must know."""
    total = len(found.requests)
    if found.num_guessed:
        yield (
            f"{found.num_guessed} of {total} requests did not run to their end in the"
            " recording; they were given the median length of their class."
        )
    if found.num_found_tokens:
        yield (
            f"{found.num_found_tokens} prompt tokens were found in the prefix cache; prompts are"
            " replayed without them."
        )
    if (found.kept_spec or {}).get("machine", {}).get("prefix_caching"):
        yield (
            "The kept run had prefix caching on, and which prompts begin alike is not kept: here"
            " every prompt is computed whole."
        )
    history = found.history
    if history is None:
        return
    if history.num_unended:
        yield (
            f"{history.num_unended} requests whose end is not recorded do not count in what"
            " happened."
        )
    if history.num_gaps:
        yield (
            f"The recording has {history.num_gaps} gaps: requests may be missing, and it does not"
            " replay bit for bit."
        )
    if not history.tells_speed:
        yield "Too few steps are recorded to know the machine's speed: step times are --gpu's."
    else:
        error = history.profile().error
        if error is not None:
            yield (
                f"Step times are fitted to {len(history.steps.listener.shapes)} recorded steps;"
                f" off by {error.median:.0%} at the median on steps held out."
            )
