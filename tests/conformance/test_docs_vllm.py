"""What the docs say of vLLM: its options exist, and commands with its scheduler run."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.cli.main import main
from headway.engines.vllm.vllm_names import moved

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_blocks: Any = importlib.import_module("docs_blocks")
docs_commands: Any = importlib.import_module("docs_commands")

PAGES = docs_blocks.pages()

OTHERS = {
    "SGLang": {
        "--chunked-prefill-size",
        "--enable-priority-scheduling",
        "--schedule-conservativeness",
        "--schedule-policy",
    },
    "sglang-router and vllm-router": {"--disable-circuit-breaker", "--disable-retries"},
    "scripts of ours": {"--recording", "--traces", "--table"},
}
"""Options that the docs name and that are neither ours nor vLLM's, by whose they are."""


@pytest.fixture(scope="module")
def vllm_parser() -> Any:
    """The parser of ``vllm serve``, as ``headway serve`` uses it."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    return moved("make_arg_parser")(FlexibleArgumentParser(prog="vllm serve"))


def commands() -> list[tuple[Any, list[str]]]:
    return [
        (block, command)
        for page in PAGES
        for block in docs_blocks.blocks_of(page)
        if block.language == "sh"
        for command in docs_blocks.commands_in(block.text)
    ]


def servers() -> list[Any]:
    return [
        pytest.param(command, id=f"{block}-{number}")
        for number, (block, command) in enumerate(commands())
        if command[:2] in (["vllm", "serve"], ["headway", "serve"])
    ]


@pytest.mark.parametrize("command", servers())
def test_what_starts_a_server_could_start_it(command: list[str], vllm_parser: Any) -> None:
    """vLLM's own parser takes every word that is not ours; Headway takes its settings."""
    from headway.config import Settings

    rest = command[2:]
    if command[0] == "headway":
        serve = dict(docs_commands.all_commands())["headway serve"]
        context = serve.make_context("serve", rest)
        rest = [context.params["model"], *context.params["vllm_args"]]
    parsed = vllm_parser.parse_args(rest)
    settings = (parsed.additional_config or {}).get("headway")
    Settings.parse(settings)
    assert parsed.model_tag
    for name in (parsed.scheduler_cls, *parsed.middleware):
        assert name is None or pkgutil.resolve_name(name)


def test_options_in_the_text_exist(vllm_parser: Any) -> None:
    """An option between backquotes is one of ours, of vLLM's, or of somebody named above."""
    known = {option for action in vllm_parser._actions for option in action.option_strings}
    for _, command in docs_commands.all_commands():
        for parameter in command.params:
            known.update(parameter.opts, parameter.secondary_opts)
    known = known.union(*OTHERS.values(), {"--help"})
    for page in PAGES:
        for code in docs_blocks.inline_code(page):
            for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code):
                assert option in known, f"{page.name}: whose option is {option}?"


@pytest.mark.parametrize(
    ("block", "command"),
    [
        pytest.param(block, command, id=f"{block}-{number}")
        for number, (block, command) in enumerate(commands())
        if "test_docs_vllm" in docs_blocks.fate_of(block, command)
    ],
)
def test_commands_with_vllms_scheduler_run(
    block: Any, command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``--engine vllm`` runs vLLM's own code on a small load."""
    monkeypatch.chdir(tmp_path)
    rows = [f"2023-11-16 18:00:{i:02d}.0,{200 + 9 * i},{20 + i}" for i in range(24)]
    Path("trace.csv").write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]))
    with pytest.raises(SystemExit) as stop:
        main([*docs_blocks.arguments_of(block, command), "--json", "out.json"])
    assert stop.value.code == 0
    assert json.loads(Path("out.json").read_text())["schema"] == 1
