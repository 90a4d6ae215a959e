"""``headway serve``: an OpenAI-compatible server that keeps promises."""

from __future__ import annotations

from pathlib import Path

import click


# vLLM has one-dash options of several letters, such as -dph: no -h of ours among them.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("model")
@click.option("--policy", metavar="NAME", help="Scheduling policy; stock is plain vLLM.")
@click.option(
    "--overload",
    metavar="demote|refuse",
    help="Serve a request with a lost promise as best effort (demote, the default), or answer 429.",
)
@click.option(
    "--slo",
    "slo_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file of SLO classes.",
)
@click.option(
    "--swap-gib",
    type=float,
    metavar="GIB",
    help="Host memory of each worker for the KV of preempted requests.",
)
@click.option(
    "--record",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Record the scheduler's events and plans in rotating files, without any text.",
)
@click.option(
    "--budgets",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="File that keeps error budgets through restarts.",
)
@click.option(
    "--request-start",
    is_flag=True,
    help="Start promises at the time in the X-Request-Start header, which a proxy must set.",
)
@click.option(
    "--retries-elsewhere",
    type=int,
    metavar="N",
    help="Number of other servers that a proxy asks after a refusal (default: 0).",
)
@click.option(
    "--shadow",
    metavar="NAME",
    help="Simulate this policy on the live traffic, and compare on /metrics.",
)
@click.option(
    "--grace",
    "grace_s",
    type=int,
    metavar="SECONDS",
    help="Time for running answers after SIGTERM (default: 20).",
)
@click.option("--page", is_flag=True, help="Show /headway, and Headway's metrics on /metrics.")
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED, metavar="[VLLM ARGUMENTS]...")
def serve(
    model: str,
    policy: str | None,
    overload: str | None,
    slo_file: Path | None,
    swap_gib: float | None,
    record: Path | None,
    budgets: Path | None,
    request_start: bool,
    retries_elsewhere: int | None,
    shadow: str | None,
    grace_s: int | None,
    page: bool,
    vllm_args: tuple[str, ...],
) -> None:
    """Serve MODEL with vLLM and keep each request's promise.

    MODEL is anything vLLM can load, or smollm2, a small real model that comes with the
    extra "cpu". Every option of "vllm serve" works here too.
    """
    from headway.engines.vllm import api_server as server

    if model.startswith("-"):
        raise click.UsageError("Name the model first: headway serve MODEL [options].")
    options = server.ServeOptions(
        model,
        policy,
        overload,
        slo_file,
        vllm_args,
        swap_gib,
        page,
        record,
        shadow,
        budgets,
        request_start,
        retries_elsewhere,
        grace_s,
    )
    server.serve(options)
