"""The docs and the README do what they say: blocks run, options exist."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from headway import __file__ as package
from headway.cli.main import COMMANDS, main
from headway.config import Settings
from headway.engines.vllm.promise import asked_of
from headway.errors import UserError
from headway.metrics.catalogue import METRICS
from headway.ops import __file__ as ops
from headway.slo import Slo, SloBook
from headway.workloads.readers import load

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_blocks: Any = importlib.import_module("docs_blocks")
docs_commands: Any = importlib.import_module("docs_commands")

PAGES = docs_blocks.pages()
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]
BY_PATH: dict[str, click.Command] = dict(docs_commands.all_commands())
MISTAKES = (AssertionError, ImportError, UserError, ValueError, click.ClickException)
PROFILE = Path(package).parent / "latency" / "profiles" / "llama-3.1-8b@a100.json"
BOOK = SloBook({name: Slo(ttft_s=1.0, class_name=name) for name in ("chat", "batch", "gold")}, None)
"""Classes that the docs name in requests."""


@pytest.fixture(scope="module")
def props(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that pages speak of and no block of theirs makes: a trace, a recorded run, …"""
    folder: Path = tmp_path_factory.mktemp("props")
    rows = [f"2023-11-16 18:00:{i:02d}.0,{200 + 9 * i},{20 + i}" for i in range(24)]
    (folder / "trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    sizes = ["--workload", "mixed", "--requests", "20", "--rate", "8", "--max-tokens", "50"]
    files = ["--json", str(folder / "out.json"), "--keep", str(folder / "runs")]
    headway(["simulate", "--workers", "1", *sizes, *files])
    shutil.copy(next((folder / "runs").iterdir()), folder / "recording.jsonl")
    shutil.copy(PROFILE, folder / "my-gpu.json")
    (folder / "paper-out").mkdir()
    shutil.copy(folder / "out.json", folder / "paper-out" / "cacheopt-runs.json")
    return folder


def headway(argv: list[str]) -> None:
    """Run the command line in this process."""
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 0, f"headway {' '.join(argv)} ended with {stop.value.code}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_the_blocks_of_a_page(
    page: Path,
    props: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Blocks run one after another in one folder, or are checked, each by what it is."""
    shutil.copytree(props, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    for block in docs_blocks.blocks_of(page):
        assert block.language in CHECKS, f"{block}: what is a {block.language!r} block?"
        assert block.words or block.kind != "not run", f"{block}: say why it is not run"
        if block.kind == "output":
            shown = "\n".join(line.rstrip() for line in capsys.readouterr().out.splitlines())
            assert block.text.strip() == shown.strip(), block
            continue
        capsys.readouterr()
        try:
            CHECKS[block.language](block)
        except MISTAKES as error:
            raise AssertionError(f"{block}: {error}\n{block.text}") from error


def check_shell(block: Any) -> None:
    """Every command exists with these options; those that are quick are run."""
    commands = list(docs_blocks.commands_in(block.text))
    assert commands, "no command in it"
    for command in commands:
        check_command(command)
        if docs_blocks.fate_of(block, command) == "run (tests/unit/test_docs.py)":
            run(block, command)


def run(block: Any, command: list[str]) -> None:
    if command[0] == "headway":
        headway(docs_blocks.arguments_of(block, command))
    else:
        assert command[:2] == ["python", "-c"], f"nobody knows how to run {command[0]}"
        found = {**os.environ, "PYTHONPATH": str(Path(package).parents[1])}
        subprocess.run([sys.executable, *command[1:]], check=True, capture_output=True, env=found)


def check_command(command: list[str]) -> None:
    """What can be known without running it; vLLM's options are looked at in conformance."""
    program = command[0]
    if program == "headway":
        parse(command[1:])
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        asked = {word for word in command[1:] if "=" not in word}
        assert asked <= set(targets), f"no target of that name; there are {targets}"
    elif program == "curl":
        check_curl(command)
    elif program == "python" and command[1].endswith(".py"):
        assert (ROOT / command[1]).is_file(), f"{command[1]} does not exist"


def parse(argv: list[str]) -> None:
    """Have click read the arguments, without running the command."""
    assert argv[0] in COMMANDS, f"headway {argv[0]} does not exist"
    command = BY_PATH[f"headway {argv[0]}"]
    rest = argv[1:]
    if isinstance(command, click.Group):
        command, rest = BY_PATH[f"headway {argv[0]} {argv[1]}"], argv[2:]
    command.make_context(argv[0], list(rest))


def check_curl(command: list[str]) -> None:
    headers = [v for flag, v in pairwise(command) if flag == "-H"]
    pairs = [(n.strip().lower().encode(), v.strip().encode()) for n, _, v in
             (header.partition(":") for header in headers)]  # fmt: skip
    body = json.loads(command[command.index("-d") + 1])
    if "X-Slo-Ttft-Ms: abc" in headers:
        with pytest.raises(UserError):
            asked_of(BOOK, pairs, body)
    else:
        assert asked_of(BOOK, pairs, body).slo.is_promise, "it asks for no promise"


def check_toml(block: Any) -> None:
    """A TOML block is an SLO file; the one it names in its first line is left for later blocks."""
    document = tomllib.loads(block.text)
    SloBook.parse(document)
    named = re.match(r"# ([\w.]+\.toml)", block.text)
    assert named, "name the file in a comment"
    Path(named[1]).write_text(block.text, encoding="utf-8")


def check_json(block: Any) -> None:
    """A JSON block is a server's setting, an error, or a line of a workload."""
    document = json.loads(block.text)
    if "headway" in document:
        Settings.parse(document["headway"])
    elif "error" in document:
        assert set(document["error"]) == {"message", "type", "param", "code"}
    else:
        Path("line.jsonl").write_text(block.text, encoding="utf-8")
        assert len(load(Path("line.jsonl"))) == 1


def check_yaml(block: Any) -> None:
    """A YAML block can be read, and what it starts exists."""
    document = yaml.safe_load(block.text)
    for container in document.get("containers", ()):
        check_command([*container["command"], *container["args"]])
    for name in document.get("rule_files", ()):
        assert (Path(ops).parent / name).is_file(), f"the package has no {name}"


def check_promql(block: Any) -> None:
    """Its metrics exist, and so do the labels it groups by."""
    labels = {label for m in METRICS for label in (*m.labels, "le", "engine")}
    for group in re.findall(r"by \(([^)]*)\)", block.text):
        assert {label.strip() for label in group.split(",")} <= labels


def check_python(block: Any) -> None:
    """A client's code is run by the live tests; the rest is run here."""
    code = compile(block.text, str(block), "exec")
    if not block.is_live and block.kind != "not run":
        exec(code, {})


CHECKS: Mapping[str, Any] = {
    "sh": check_shell,
    "toml": check_toml,
    "json": check_json,
    "yaml": check_yaml,
    "promql": check_promql,
    "text": lambda block: None,
    "python": check_python,
}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_and_metrics_named_in_the_text(page: Path) -> None:
    """``headway ...`` in running text is a command with these options; metrics exist."""
    known = {m.name for m in METRICS}
    for code in docs_blocks.inline_code(page):
        if code.startswith("headway "):
            check_mention(code, page)
    for name in re.findall(r"\bheadway_[a-z_]+[a-z]\b", page.read_text(encoding="utf-8")):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        assert {name, base} & known, f"{page.name}: there is no metric {name}"


NO_COMMANDS = {"headway again"}  # a line of the table that headway replay prints


def check_mention(code: str, page: Path) -> None:
    words = code.replace("'", "").split()
    path = f"headway {words[1]}"
    if code in NO_COMMANDS or words[1] == "COMMAND":
        return
    assert path in BY_PATH, f"{page.name}: {path} does not exist"
    if words[1] == "serve":
        return  # vLLM's options are looked at in conformance.
    if len(words) > 2 and f"{path} {words[2]}" in BY_PATH:
        path = f"{path} {words[2]}"
    known = {o for p in BY_PATH[path].params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    options = {word.partition("=")[0] for word in words if word.startswith("--")}
    assert options <= known, f"{page.name}: {path} has no {sorted(options - known)}"


@pytest.mark.parametrize(
    ("block", "complaint"),
    [
        ("```sh\nheadway simulate --workload mixed --rats 3\n```", "--rats"),
        ("```sh\nheadway simulatte\n```", "does not exist"),
        ("```sh\nheadway bench --slo-as minutes\n```", "minutes"),
        ("```sh\nmake coffee\n```", "no target"),
        ('```sh\ncurl x -d \'{"slo": {"tfft_ms": 1}}\'\n```', "tfft_ms"),
        ("```toml\n# slo.toml\n[classes.chat]\ntfft_s = 1\n```", "tfft_s"),
        ('```json\n{"headway": {"polcy": "slack"}}\n```', "polcy"),
        ("```sh\nfrobnicate\n```", "nobody knows"),
        ("```python\nimport headway.nothing\n```", "headway.nothing"),
    ],
)
def test_a_mistake_in_a_block_is_found(
    block: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option, command, target or field that does not exist fails the test of its page."""
    monkeypatch.setattr(docs_blocks, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(block, encoding="utf-8")
    (found,) = docs_blocks.blocks_of(page)
    with pytest.raises(MISTAKES, match=complaint):
        CHECKS[found.language](found)


def test_shell_is_split_into_commands() -> None:
    """Quotations and backslashes go on over lines; comments, variables and redirections go."""
    text = "A=1 headway top --once # why\ncurl u -d '{\n}'  | x > f && make \\\n  lint\n"
    assert list(docs_blocks.commands_in(text)) == [
        ["headway", "top", "--once"], ["curl", "u", "-d", "{\n}"], ["x"], ["make", "lint"],
    ]  # fmt: skip


def test_every_command_of_the_docs_has_a_fate_with_a_reason() -> None:
    """Nothing is left out without a word."""
    for page in PAGES:
        for block in docs_blocks.blocks_of(page):
            commands = docs_blocks.commands_in(block.text) if block.language == "sh" else ()
            for command in commands:
                fate = docs_blocks.fate_of(block, command)
                assert re.match(r"run|checked, not run: \w", fate), f"{block}: {fate}"
