#!/usr/bin/env python3
"""Run the conformance tests with another release of vLLM: ``scripts/try_release.py 0.33.0``.

They drive vLLM's real scheduler without a model, so the Python files of its wheel are enough: pip
downloads it (0.3 GB), they are unpacked into ``.releases/`` and stand in front of the vLLM that is
installed. Arguments behind the release are pytest's, and replace ``tests/conformance -n 2``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CACHE = ROOT / ".releases"

LARGEST_BYTES = 1_000_000
"""Files of other kinds that are unpacked too: small tables that modules read at import."""


def unpacked(release: str) -> Path:
    """Return the folder with the Python files of *release*, which is filled the first time."""
    folder = CACHE / f"vllm-{release}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
            tree = Path(scratch) / "tree"
            unpack(download(release, Path(scratch)), tree)
            say_it_is_for_cpus(tree, release)
            tree.rename(folder)
    return folder


def download(release: str, folder: Path) -> Path:
    """Return the wheel of *release*, fetched into *folder*."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--dest", str(folder)]
    subprocess.run([*command, f"vllm=={release}"], check=True)
    return next(folder.glob("*.whl"))


def unpack(wheel: Path, folder: Path) -> None:
    """Unpack what is Python, or small and no machine code."""
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            is_code = member.filename.endswith(".py")
            is_small = member.file_size < LARGEST_BYTES and ".so" not in member.filename
            if is_code or is_small:
                archive.extract(member, folder)


def say_it_is_for_cpus(folder: Path, release: str) -> None:
    """Give the unpacked release the name of a build for CPUs, by which vLLM knows its platform."""
    metadata = folder / f"vllm-{release}.dist-info" / "METADATA"
    text = metadata.read_text(encoding="utf-8")
    was, now = f"\nVersion: {release}\n", f"\nVersion: {release}+cpu\n"
    assert was in text, f"no version where it is expected: {metadata}"
    metadata.write_text(text.replace(was, now, 1), encoding="utf-8")


def main(release: str, arguments: list[str]) -> int:
    """Return pytest's exit status."""
    paths = [str(unpacked(release)), str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    asked = arguments or ["tests/conformance", "-n", "2"]
    said = subprocess.run(
        [sys.executable, "-c", "import vllm; print(vllm.__version__)"],
        env=environment, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if said != release:
        sys.exit(f"vLLM {said} was found instead of {release}.")
    print(f"vLLM {said}", flush=True)
    command = [sys.executable, "-m", "pytest", *asked]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
