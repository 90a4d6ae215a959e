"""Question: does the simulator predict what a real server on this machine did?

Takes the recording of a live server (the demo's traffic, policy slack, SmolLM2 on the CPU),
calibrates a profile from the recording's own steps, serves the same requests in the simulator and
compares. Half of the error is the profile's, half is that a different step length leads to
different decisions. Writes live.json and live.md beside itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np

from headway.metrics import define, kept
from headway.policy.events import Arrived, StepDone
from headway.slo import Slo
from headway.workloads.record_files import event_in
from headway.workloads.text_files import json_lines

HERE = Path(__file__).parent
Seen = dict[str, tuple[Slo, float, list[float]]]


def of_recording(path: Path) -> Seen:
    """Return promise, arrival and emission times of each request, as the server saw them."""
    seen: Seen = {}
    for where, row in json_lines(path):
        event = event_in(where, row)
        if isinstance(event, Arrived):
            seen[event.request_id] = (event.slo, event.arrived_at_s, [])
        elif isinstance(event, StepDone):
            for request_id, count in event.num_new_tokens.items():
                if request_id in seen:
                    seen[request_id][2].extend([event.at_s] * count)
    return seen


def of_kept(path: Path) -> Seen:
    """Return the same of a simulated run."""
    run = kept.read(path)
    return {r.id: (r.slo, r.arrived_at_s, list(r.emitted_at_s)) for r in run.requests}


def figures(seen: Seen) -> dict[str, float]:
    """Return the figures compared."""
    ttfts = [emitted[0] - at_s for _, at_s, emitted in seen.values() if emitted]
    gaps = [gap for *_, emitted in seen.values() for gap in np.diff(emitted)]
    jcts = [emitted[-1] - at_s for _, at_s, emitted in seen.values() if emitted]
    kept_count = sum(
        define.attained(slo, at_s, emitted, finished=bool(emitted))
        for slo, at_s, emitted in seen.values()
    )
    result = {"promises kept": kept_count / len(seen)}
    for name, values in (("TTFT", ttfts), ("gap", gaps), ("end to end", jcts)):
        for q in (50, 90, 99):
            result[f"{name} p{q}"] = float(np.percentile(values, q))
    return result


def simulate(recording: Path, kv_tokens: int, block_size: int, folder: Path) -> Seen:
    """Calibrate a profile from *recording* and replay it on that; return what came of it."""
    profile = folder / "profile.json"
    base = [sys.executable, "-m", "headway"]
    here = ["--gpu", "cpu", "--model", "smollm2", "--kv-tokens", str(kv_tokens),
            "--kv-bytes-per-token", "46080", "--out", str(profile)]  # fmt: skip
    subprocess.run([*base, "calibrate", "--from-steps", str(recording), *here], check=True)
    machine = ["--gpu", str(profile), "--kv-tokens", str(kv_tokens), "--block-size",
               str(block_size), "--policy", "slack", "--keep", str(folder)]  # fmt: skip
    subprocess.run([*base, "replay", str(recording), *machine], check=True)
    return of_kept(next(folder.glob("*.run.json.gz")))


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, exists=True))
@click.option("--kv-tokens", default=5088, show_default=True)
@click.option("--block-size", default=32, show_default=True)
def main(recording: Path, kv_tokens: int, block_size: int) -> None:
    """Compare RECORDING with its own replay."""
    measured = figures(of_recording(recording))
    with tempfile.TemporaryDirectory() as folder:
        predicted = figures(simulate(recording, kv_tokens, block_size, Path(folder)))
    lines = ["| | measured | simulated | error |", "|---|---:|---:|---:|"]
    for name, value in measured.items():
        other = predicted[name]
        unit = "" if name == "promises kept" else " s"
        lines.append(
            f"| {name} | {value:.3f}{unit} | {other:.3f}{unit} | {other / value - 1:+.1%} |"
        )
    text = "\n".join(lines) + "\n"
    click.echo(text)
    document: dict[str, Any] = {"schema": 1, "measured": measured, "simulated": predicted}
    (HERE / "live.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (HERE / "live.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
