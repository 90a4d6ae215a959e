"""``headway report``: one self-contained page from summaries and kept runs."""

from __future__ import annotations

from pathlib import Path

import click

from headway.cli import values
from headway.errors import UserError
from headway.web.material import load


@click.command()
@click.argument("inputs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--out", default="report.html", show_default=True, type=click.Path(path_type=Path),
    help="The page.",
)  # fmt: skip
@click.option("--title", default="Promises kept, run by run", show_default=True, help="Heading.")
@click.option("--rate", help="Rate of the kept runs to draw in detail [the highest in all].")
def report(inputs: tuple[Path, ...], out: Path, title: str, rate: str | None) -> None:
    """Write a page about runs: promises kept, tails, causes of lateness, timelines.

    INPUTS are summaries (simulate --json), kept runs (*.run.json.gz) and folders of either.
    """
    rate_rps = values.rate(rate)
    values.writable(out)
    if out.is_dir():
        raise UserError(f"{out} is a folder; --out names the page to write.")
    material = load(inputs)
    from headway.web.report_page import page_of

    page = page_of(material, title=title, rate_rps=rate_rps)
    values.write(out, page)
    click.echo(
        f"Wrote {out}: {len(material.runs)} runs, {len(material.kept)} of them kept,"
        f" {len(page.encode()) / 1e6:.1f} MB."
    )
