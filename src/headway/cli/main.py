"""The ``headway`` command. A subcommand's module is imported only when it runs."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

import headway
from headway.errors import HeadwayError, UserError

COMMANDS = {
    "serve": ("headway.cli.serve:serve", "Serve a model, keeping each request's promise."),
    "bench": ("headway.cli.bench:bench", "Load a live server and count the promises it kept."),
    "simulate": (
        "headway.cli.simulate:simulate",
        "Compare policies on a virtual GPU: any load, any trace.",
    ),
    "capacity": ("headway.cli.capacity:capacity", "Find the highest rate a policy can promise."),
    "replay": ("headway.cli.replay:replay", "Serve a recorded run again, differently."),
    "report": ("headway.cli.report:report", "Draw runs as one page that needs no network."),
    "trace": ("headway.cli.trace:trace", "Inspect, convert or make up a workload."),
    "paper": ("headway.cli.paper:paper", "Run the published systems' experiments."),
    "top": ("headway.cli.top:top", "Watch a running server in the terminal."),
    "explain": ("headway.cli.explain:explain", "Tell where a late request's seconds went."),
    "calibrate": ("headway.cli.calibrate:calibrate", "Make a step-time profile."),
    "verify": (
        "headway.cli.verify:verify",
        "Measure Headway beside stock vLLM here, for an issue.",
    ),
    "demo": ("headway.cli.demo:demo", "Serve a real model here, with and without Headway."),
}
"""Name → (module:command, one line of help)."""


class LazyGroup(click.Group):
    """A group that knows its commands' names without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of :data:`COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command, or ``None`` when there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


def tell_version(ctx: click.Context, _: click.Parameter, is_asked: bool) -> None:
    """Print the versions of Headway and of vLLM, which is not imported for it, and end."""
    if not is_asked or ctx.resilient_parsing:
        return
    from headway.bench.provenance import vllm_version

    vllm = vllm_version()
    beside = f"vLLM {vllm}" if vllm else "vLLM is not installed"
    click.echo(f"headway, version {headway.__version__} ({beside})")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=tell_version,
    help="Show the versions of Headway and vLLM and exit.",
)  # fmt: skip
def cli() -> None:
    """Headway keeps tokens on schedule: an SLO-aware scheduler for LLM servers."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line and exit: 0, 1 on failure, 2 on a user's mistake."""
    try:
        code = cli.main(
            args=list(argv) if argv is not None else None,
            prog_name="headway",
            standalone_mode=False,
        )
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except UserError as error:
        _fail(str(error), 2)
    except HeadwayError as error:
        _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(sentence: str, code: int) -> None:
    click.echo(f"headway: {sentence}", err=True)
    sys.exit(code)
