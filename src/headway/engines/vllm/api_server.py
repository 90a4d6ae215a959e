"""Start vLLM's OpenAI-compatible server with Headway as its scheduler.

vLLM's own parser reads every argument we do not know, so all of ``vllm serve``'s options
work; Headway's part is put into the parsed arguments.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from headway import registry
from headway.config import Settings
from headway.engines.vllm import embedded, recorder, shadow_process, start_checks
from headway.engines.vllm.budget_file import check_budgets
from headway.engines.vllm.channel import LOAD_CHANNEL_VARIABLE, private_channel
from headway.engines.vllm.edge import SLO_FILE_VARIABLE
from headway.engines.vllm.leaving import shutdown_timeout_s
from headway.engines.vllm.start_checks import additional_config, last_value, mistyped
from headway.engines.vllm.vllm_names import moved, refuse_options
from headway.errors import UserError
from headway.units import GIB

STOCK = "stock"
"""The policy name that means: vLLM alone, nothing of Headway in it."""

EDGE = "headway.engines.vllm.edge.SloEdge"
LOAD_REPORTS = "headway.engines.vllm.load_report.LoadReports"
LIVE_VIEW = "headway.engines.vllm.observe.LiveView"
LEAVING = "headway.engines.vllm.leaving.Leaving"
ASYNC_SCHEDULER = "headway.vllm.Scheduler"
SYNC_SCHEDULER = "headway.vllm.SyncScheduler"

MOST_IN_FLIGHT = 16_384
"""Requests that a server takes in at once for each data parallel rank, running or waiting, unless
``--max-num-queued-reqs`` says otherwise; vLLM's own default has no bound. The next gets 503."""


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """What ``headway serve`` was asked for.

    Attributes:
        model: ``"smollm2"`` or anything vLLM can load.
        policy: A preset's name, ``"stock"``, or ``None`` for the default policy.
        overload: ``"demote"``, ``"refuse"``, or ``None`` for the default.
        slo_file: TOML file of classes, or ``None``.
        vllm_args: All other arguments, for vLLM's parser.
        swap_gib: Host memory of each worker for the KV of preempted requests, or ``None``.
        page: Whether to show the page at ``/headway`` and Headway's own metrics.
        record: Folder for a recording of events and plans, or ``None``.
        shadow: Preset to compare the policy with, in simulations of live traffic, or ``None``;
            its metrics bring the page with them.
        budgets: File in which error budgets outlive the server, or ``None``; the page comes with
            it too.
        request_start: Whether ``X-Request-Start`` is believed.
        retries_elsewhere: How many other servers a proxy asks after a refusal, or ``None``.
        grace_s: How long running answers may go on after SIGTERM, or ``None`` for the default.
    """

    model: str
    policy: str | None
    overload: str | None
    slo_file: Path | None
    vllm_args: Sequence[str]
    swap_gib: float | None = None
    page: bool = False
    record: Path | None = None
    shadow: str | None = None
    budgets: Path | None = None
    request_start: bool = False
    retries_elsewhere: int | None = None
    grace_s: int | None = None

    @property
    def is_stock(self) -> bool:
        """Whether plain vLLM was asked for."""
        return self.policy == STOCK

    def settings(self) -> dict[str, Any]:
        """Return the part of ``--additional-config`` these options stand for."""
        given = {
            "policy": self.policy,
            "overload": self.overload,
            "slo_file": str(self.slo_file.absolute()) if self.slo_file else None,
            "record": str(self.record.absolute()) if self.record else None,
            "budgets": str(self.budgets.absolute()) if self.budgets else None,
            "request_start": True if self.request_start else None,
            "retries_elsewhere": self.retries_elsewhere,
        }
        return {key: value for key, value in given.items() if value is not None}


def serve(options: ServeOptions) -> None:
    """Serve until SIGINT or SIGTERM.

    Raises:
        UserError: An option is a mistake; found before vLLM is imported where it is ours.
    """
    check(options)
    start_checks.check_port(options.vllm_args)
    if options.model != embedded.NAME:
        start_checks.check_model(options.model, options.vllm_args)
    model, defaults = embedded.resolve(options.model)
    named = {arg.partition("=")[0].replace("_", "-") for arg in options.vllm_args}
    extra = [word for words in defaults if words[0] not in named for word in words]
    args = _parse_vllm_args([model, *extra, *options.vllm_args])
    if options.model == embedded.NAME:
        embedded.prefer_one_engine_process(args)
    if not options.is_stock:
        _plug_in(args, options)
    _run(args)


def check(options: ServeOptions) -> None:
    """Raise one sentence when an option of ours is a mistake; imports no engine."""
    if options.policy not in (None, STOCK, *registry.names()):
        allowed = ", ".join((*registry.names(), STOCK))
        raise UserError(f"--policy {options.policy!r} is not known; the policies are: {allowed}.")
    if options.is_stock:
        ours = (options.overload, options.slo_file, options.swap_gib, options.record)
        more = (options.shadow, options.budgets, options.request_start, options.retries_elsewhere)
        if any(ours) or any(more) or options.grace_s is not None:
            named = (
                "--overload, --slo, --swap-gib, --record, --shadow, --budgets, --request-start,"
                " --retries-elsewhere and --grace"
            )
            print(f"headway: --policy stock ignores {named}.", file=sys.stderr)
    else:
        if options.shadow is not None and options.shadow not in registry.names():
            allowed = ", ".join(registry.names())
            raise UserError(f"--shadow {options.shadow!r} is not known; it can be: {allowed}.")
        given = options.vllm_args
        scheduler = last_value("--scheduler-cls", given)
        _refuse_others(scheduler, last_value("--scheduling-policy", given) or "fcfs")
        _settings_of(additional_config(given), options)
        shutdown_timeout_s(options.grace_s, 0 if last_value("--shutdown-timeout", given) else None)
    gib = options.swap_gib
    if gib is not None and not (math.isfinite(gib) and gib > 0):
        raise UserError(f"--swap-gib must be a number of GiB greater than 0, not {gib}.")
    if importlib.util.find_spec("vllm") is None:
        raise UserError(
            "vLLM is not installed; install it with: pip install 'headway[vllm]' "
            "(or 'headway[cpu]' for a machine without a GPU)."
        )


def _settings_of(given: Any, options: ServeOptions) -> Settings:
    """Return the settings in the ``--additional-config`` *given* and in *options*, checked.

    Raises:
        UserError: One is a mistake.
    """
    settings = Settings.parse(merged_config(given, options.settings())["headway"])
    settings.book()
    recorder.check_writable(settings)  # Here it is a sentence; in the engine, a traceback.
    check_budgets(settings)
    return settings


def _parse_vllm_args(argv: list[str]) -> argparse.Namespace:
    """Return *argv* as vLLM's own command line would understand it."""
    from vllm.logger import configure_logging_from_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    moved("cli_env_setup")()

    class Parser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise UserError(mistyped(message, self._option_string_actions))

    parser = moved("make_arg_parser")(Parser(prog="headway serve"))
    args: argparse.Namespace = parser.parse_args(argv)
    args.model = args.model_tag  # vLLM does this, but later than we look at it
    configure_logging_from_args(args)
    return args


def _refuse_others(scheduler: str | None, policy: str, long_prefill_tokens: int = 0) -> None:
    if scheduler is not None:
        raise UserError(
            f"--scheduler-cls {scheduler} replaces Headway; use --policy stock with it, or drop it."
        )
    refuse_options(policy, long_prefill_tokens)


def _plug_in(args: argparse.Namespace, options: ServeOptions) -> None:
    """Put scheduler, settings and HTTP edge into vLLM's parsed arguments."""
    _refuse_others(args.scheduler_cls, args.scheduling_policy, args.long_prefill_token_threshold)
    args.additional_config = merged_config(args.additional_config, options.settings())
    if options.shadow is not None:
        shadow_process.see_to_recording(args.additional_config["headway"])
    settings = _settings_of(args.additional_config, options)
    os.environ.pop(SLO_FILE_VARIABLE, None)  # the edge shall read what the scheduler reads
    if settings.slo_file:
        os.environ[SLO_FILE_VARIABLE] = settings.slo_file
    if args.max_num_queued_reqs is None:
        args.max_num_queued_reqs = MOST_IN_FLIGHT * args.data_parallel_size
    private_channel(LOAD_CHANNEL_VARIABLE)
    args.middleware = [*args.middleware, EDGE, LOAD_REPORTS]
    if options.page or options.shadow is not None or settings.budgets is not None:
        private_channel()
        args.middleware.append(LIVE_VIEW)
    if options.shadow is not None:
        shadow_process.start(settings, options.shadow)
    args.middleware.append(LEAVING)  # The last is the outermost.
    is_said = args.shutdown_timeout or last_value("--shutdown-timeout", options.vllm_args)
    own_s = args.shutdown_timeout if is_said else None
    args.shutdown_timeout = shutdown_timeout_s(options.grace_s, own_s)
    if options.swap_gib is not None:
        _plug_in_swap(args, options.swap_gib)
    args.scheduler_cls = ASYNC_SCHEDULER if _schedules_ahead(args) else SYNC_SCHEDULER


def _plug_in_swap(args: argparse.Namespace, swap_gib: float) -> None:
    """Put the swap connector into vLLM's parsed arguments.

    Raises:
        UserError: The user named a connector; vLLM runs one.
    """
    if args.kv_transfer_config is not None:
        raise UserError(
            "--swap-gib is a KV connector, and so is --kv-transfer-config; drop one, or name both "
            "in one MultiConnector."
        )
    from vllm.config import KVTransferConfig

    from headway.engines.vllm.swap_connector import transfer_config

    args.kv_transfer_config = KVTransferConfig(**transfer_config(int(swap_gib * GIB)))


def merged_config(given: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user's ``--additional-config`` with *settings* in it; ours win.

    Raises:
        UserError: Theirs is not an object, or its ``headway`` is not.
    """
    config = given or {}
    own = config.get("headway", {}) if isinstance(config, Mapping) else None
    if not isinstance(own, Mapping):
        raise UserError(
            "--additional-config must be a JSON object, and so must its 'headway', "
            f"not {json.dumps(given, default=str):.80}."
        )
    return {**config, "headway": {**own, **settings}}


def _schedules_ahead(args: argparse.Namespace) -> bool:
    """Return whether vLLM will run async scheduling with these arguments.

    vLLM resolves that while it builds its configuration, and only the result is certain;
    building it takes seconds, so the two clear cases come first.
    """
    if args.async_scheduling is False or embedded.on_cpu():
        return False
    from vllm.engine.arg_utils import AsyncEngineArgs

    config = AsyncEngineArgs.from_cli_args(args).create_engine_config()
    return bool(config.scheduler_config.async_scheduling)


def _run(args: argparse.Namespace) -> None:
    """Run vLLM's server, with as many API and engine processes as *args* ask for."""
    from vllm.entrypoints.cli.serve import ServeSubcommand

    command = ServeSubcommand()
    command.validate(args)
    try:
        command.cmd(args)
    except KeyboardInterrupt:
        sys.exit(130)  # stopped while it was starting; vLLM has ended its processes
