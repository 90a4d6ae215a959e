"""``headway verify``: what Headway does on this machine, beside stock vLLM, in one file."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from headway.bench.access import Access, access_of
from headway.bench.server import stop_on_signals
from headway.bench.show import Display, display
from headway.bench.verification import Verification
from headway.bench.verify_report import conclusion, document_of, verify_table, without_places
from headway.bench.verify_rows import VerifyRow, rows_of
from headway.bench.verify_servers import Servers, Started, checked
from headway.cli.values import save, say, write
from headway.engines.vllm.api_server import ServeOptions, check
from headway.engines.vllm.embedded import NAME
from headway.engines.vllm.start_checks import check_model
from headway.errors import HeadwayError, UserError
from headway.web.verify_page import verify_page

HOW = "Give a MODEL, or two --url: stock vLLM's first, then Headway's"


@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option(
    "--url", "urls", multiple=True, metavar="URL",
    help="A running server, in place of MODEL: stock vLLM's, then Headway's.",
)  # fmt: skip
@click.option(
    "--api-key", envvar=["VLLM_API_KEY", "OPENAI_API_KEY"],
    help="Sent as a bearer token [VLLM_API_KEY, else OPENAI_API_KEY].",
)  # fmt: skip
@click.option(
    "--minutes", default=8.0, show_default=True, type=click.FloatRange(4, 120),
    help="About how long it takes; rounds are as long as four starts of a server leave time for.",
)  # fmt: skip
@click.option(
    "--out", default="verify-out", show_default=True, type=click.Path(path_type=Path),
    help="Folder for verify.json, verify.html and the servers' logs.",
)  # fmt: skip
@click.argument("model", required=False)
@click.argument("vllm_args", nargs=-1, type=click.UNPROCESSED, metavar="[VLLM ARGUMENTS]...")
def verify(
    urls: tuple[str, ...],
    api_key: str | None,
    minutes: float,
    out: Path,
    model: str | None,
    vllm_args: tuple[str, ...],
) -> None:
    """Measure Headway beside stock vLLM on this machine, for a report to attach to an issue.

    MODEL is served by stock vLLM and by Headway in turn, with the same arguments; --url names two
    servers that run already. No text of a prompt or an answer is written. The exit code is 0 when
    the run came to its end, whatever the verdicts, and 2 when a server could not be used.
    """
    _check(urls, model, vllm_args)
    access = access_of((*urls, "")[0], api_key)
    stop_on_signals()
    console = Console()
    with display(console, "verify") as shown:
        servers = _servers(urls, model, vllm_args, out, shown, access)
        _make(out)
        run = Verification(servers, access, shown, 60 * minutes, vllm_args)
        begun_s, stopped = time.monotonic(), None
        try:
            run.run()
        except KeyboardInterrupt:
            console.print("Stopped; no server that was started here is left.")
            sys.exit(130)
        except HeadwayError as error:
            stopped = str(error)
            run.seen.why_not[""] = f"The run ended before: {stopped}"
    rows = [replace(row, found=without_places(row.found, out)) for row in rows_of(run.seen)]
    told = None if stopped is None else without_places(stopped, out)
    took_s = time.monotonic() - begun_s
    _write(rows, document_of(rows, model or run.model, vllm_args, took_s, told), out)
    if stopped is not None:
        raise UserError(f"{stopped.rstrip('.')}; what was found before is in {out}.")
    console.print(verify_table(rows))
    say(console, [conclusion(rows), f"Attach {out / 'verify.json'}; page: {out / 'verify.html'}"])


def _check(urls: tuple[str, ...], model: str | None, vllm_args: tuple[str, ...]) -> None:
    """Raise one sentence on what is certainly wrong; imports no engine.

    Raises:
        UserError: It is.
    """
    if bool(urls) == bool(model):
        what = "Both are given" if urls else "Neither is given"
        raise UserError(f"{HOW}. {what}." if urls else f"{HOW}.")
    if urls and len(urls) != 2:
        raise UserError(f"--url is given {len(urls)} times, not twice. {HOW}.")
    for url in urls:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"--url must start with http:// or https://, not {url!r:.60}.")
    if model is not None:
        if model.startswith("-"):
            raise UserError(f"There is no option {model.partition('=')[0]}; {HOW}.")
        check(ServeOptions(model, None, None, None, vllm_args))
        if model != NAME:
            check_model(model, vllm_args)


def _servers(
    urls: tuple[str, ...],
    model: str | None,
    vllm_args: tuple[str, ...],
    out: Path,
    shown: Display,
    access: Access,
) -> Servers:
    if model is not None:
        return Started(model, vllm_args, out, shown.waited)
    shown.stage("asking both servers")
    return checked(urls, access)


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {out}: {error.strerror}.") from None


def _write(rows: list[VerifyRow], document: dict[str, object], out: Path) -> None:
    save(out / "verify.json", document)
    write(out / "verify.html", verify_page(rows, document))
