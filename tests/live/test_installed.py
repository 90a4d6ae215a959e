"""What a user installs: a wheel built from the source archive, alone in a fresh environment.

Takes dependencies from the package index, in the versions of the lock; everything else is here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from headway import __version__

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "headway"
NAME = f"headway-{__version__}"
BUILD = "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"


def call(*command: str | Path, cwd: Path) -> str:
    """Run a program without this checkout on its path; return what it wrote, or fail with it."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**clean, "COLUMNS": "100"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def tracked(folder: str) -> set[str]:
    """Return the files of the checkout under *folder*, those not yet committed among them."""
    options = ("--cached", "--others", "--exclude-standard", "--deduplicate")
    listed = call("git", "ls-files", *options, folder, cwd=ROOT).splitlines()
    return {name for name in listed if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the source archive from a copy of the checkout, and the wheel from the archive."""
    folder: Path = tmp_path_factory.mktemp("build")
    for name in tracked("."):
        (folder / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "copy" / name).write_bytes((ROOT / name).read_bytes())
    call(sys.executable, "-c", BUILD, "build_sdist", folder, cwd=folder / "copy")
    with tarfile.open(folder / f"{NAME}.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    call(sys.executable, "-c", BUILD, "build_wheel", folder, cwd=folder / NAME)
    return folder / f"{NAME}-py3-none-any.whl"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the programs of an environment that has the wheel and what it asks for, no more."""
    folder: Path = tmp_path_factory.mktemp("fresh")
    venv.create(folder, symlinks=True)
    lock = ROOT / "requirements" / "lock.txt"
    python = folder / "bin" / "python"
    call(
        sys.executable, "-m", "uv", "pip", "install", "--quiet", "--python", python,
        "--constraint", lock, wheel, cwd=folder,
    )  # fmt: skip
    return folder / "bin"


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """Each file of the package but READMEs: profiles, files for operators, pages, styles."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    source = {name.removeprefix("src/") for name in tracked("src/headway")}
    assert names == {name for name in source if not name.endswith(".md")}
    kinds = {Path(name).suffix for name in names}
    assert {".py", ".json", ".html", ".js", ".css", ".yml", ".yaml", ".conf", ".typed"} <= kinds


def test_the_source_archive_has_what_the_wheel_is_built_of(wheel: Path) -> None:
    """And the licence; the fixture built the wheel from it."""
    with tarfile.open(wheel.with_name(f"{NAME}.tar.gz")) as archive:
        names = set(archive.getnames())
    assert {f"{NAME}/{name}" for name in ("LICENSE", "README.md", "pyproject.toml")} <= names


def test_the_installed_commands_run(installed: Path, tmp_path: Path) -> None:
    """Help of an engine that is not there, a simulation by a shipped profile, a page of it."""
    headway = installed / "headway"
    where = call(
        installed / "python", "-c", "import headway; print(headway.__file__)", cwd=tmp_path
    )
    assert Path(where.strip()).is_relative_to(installed.parent)
    assert __version__ in call(headway, "--version", cwd=tmp_path)
    assert "simulate" in call(headway, "--help", cwd=tmp_path)
    assert "--slo" in call(headway, "serve", "--help", cwd=tmp_path)
    call(
        headway, "simulate", "--workload", "mixed", "--rate", "8", "--requests", "20", "--workers",
        "1", "--gpu", "llama-3.1-8b@h100", "--json", "out.json", "--keep", "runs", cwd=tmp_path,
    )  # fmt: skip
    call(headway, "report", "out.json", "runs", "--out", "report.html", cwd=tmp_path)
    assert "<html" in (tmp_path / "report.html").read_text(encoding="utf-8")[:1000]


def test_files_for_operators_and_the_live_page_are_installed(
    installed: Path, tmp_path: Path
) -> None:
    """As a program finds them: through the package, not beside a checkout."""
    script = (
        "from importlib.resources import files\n"
        "from headway.latency import profile\n"
        "print(len(profile.names()))\n"
        "print(*(p.name for room in ('ops', 'web') for p in files('headway.' + room).iterdir()))"
    )
    num_profiles, names = call(installed / "python", "-c", script, cwd=tmp_path).splitlines()
    assert int(num_profiles) == len(list((PACKAGE / "latency" / "profiles").glob("*.json"))) > 0
    here = {path.name for room in ("ops", "web") for path in (PACKAGE / room).iterdir()}
    assert here - {"__pycache__"} <= set(names.split())


def test_without_an_engine_the_sentence_says_what_to_install(
    installed: Path, tmp_path: Path
) -> None:
    """The core alone serves nobody: exit code 2, no traceback."""
    done = subprocess.run(
        [installed / "headway", "serve", "some-model"], cwd=tmp_path, check=False,
        capture_output=True, text=True, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 2
    assert "vLLM is not installed" in done.stderr
    assert "Traceback" not in done.stderr
