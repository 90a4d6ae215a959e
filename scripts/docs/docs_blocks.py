"""The code blocks of the docs and the README, and what becomes of each in the tests.

    python scripts/docs/docs_blocks.py    # how many are run, where, and why the others are not

A comment before a block says what a test cannot know by itself:

    <!-- run with: --requests 60 -->   run it with these arguments behind its own
    <!-- live -->                      run it against a real server (``live with: ...`` as above)
    <!-- not run: why -->              check its words only
    <!-- output -->                    the text is exactly what the block before it printed

Without one, commands are run when they are quick, and checked when they are not (:data:`CHECKED`).
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]

SMALL = {
    "simulate": "--requests 12 --max-tokens 50 --seed 0 --workers 1",
    "capacity": "--requests 12 --max-tokens 50 --seed 0 --target 0.1 --start 40000 --workers 1",
    "replay": "--seed 0 --workers 1",
    "report": "",
    "trace": "",
}
"""Commands that are run, and what makes them quick where the block does not say."""

CHECKED = {
    "headway serve": "starts a server; live tests start one",
    "headway demo": "takes ten minutes; live tests run its parts",
    "headway bench": "needs a server; the tutorial's blocks are run live",
    "headway top": "needs a server; the tutorial's blocks are run live",
    "headway explain": "needs a server; the tutorial's blocks are run live",
    "headway paper": "takes an hour; tests/unit/test_paper.py runs a small one",
    "headway calibrate": "needs a recording or an extra; tests/unit/test_calibrate.py",
    "vllm serve": "starts a server; its options are checked",
    "vllm bench": "needs a server; tests/live/test_vllms_own.py runs it",
    "curl": "needs a server; its promise is checked",
    "make": "its target is checked",
    "python": "runs for minutes; the file is checked",
    "export": "sets a variable",
}
"""Commands that are only checked where the block does not say, and why."""

DIRECTIVE = re.compile(
    r"<!--\s*(run with|live with|live|not run|output)\s*:?\s*(.*?)\s*-->", re.DOTALL
)
SEPARATORS = {"|", "||", "&&", ";", "&"}


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block.

    Attributes:
        path: Its page, from the repository's root.
        line: Where its fence is, from 1.
        kind: ``run with``, ``live``, ``live with``, ``not run``, ``output``, or nothing.
        words: What stands behind the kind.
    """

    path: str
    line: int
    language: str
    text: str
    kind: str = ""
    words: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"

    @property
    def is_live(self) -> bool:
        """Whether it is run against a real server."""
        return self.kind in ("live", "live with")


def pages() -> list[Path]:
    """Return every page whose blocks count."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(path: Path) -> Iterator[Block]:
    """Yield the blocks of a page.

    Raises:
        ValueError: A block is indented instead of fenced, so nobody knows what it is.
    """
    kind = words = ""
    name = path.relative_to(ROOT).as_posix()
    for token in MarkdownIt("commonmark").parse(path.read_text(encoding="utf-8")):
        line = (token.map or [0])[0] + 1
        if token.type == "code_block":
            raise ValueError(f"{name}:{line}: fence this block and name its language.")
        if token.type == "html_block" and (found := DIRECTIVE.fullmatch(token.content.strip())):
            kind, words = found[1], " ".join(found[2].split())
        elif token.type == "fence":
            yield Block(name, line, token.info.strip(), token.content, kind, words)
        if token.type != "html_block":
            kind = words = ""


def inline_code(path: Path) -> Iterator[str]:
    """Yield what stands between backquotes in running text and tables."""
    tokens = MarkdownIt("commonmark").enable("table").parse(path.read_text(encoding="utf-8"))
    for token in tokens:
        for child in token.children or ():
            if child.type == "code_inline":
                yield child.content.replace("\\|", "|")


def commands_in(text: str) -> Iterator[list[str]]:
    """Yield the commands of a shell block as words, without variables set before them."""
    pending = ""
    for line in text.splitlines():
        pending += line.removesuffix("\\") + ("" if line.endswith("\\") else "\n")
        try:
            complete = not line.endswith("\\") and shlex.split(pending, comments=True) is not None
        except ValueError:  # A quotation goes on in the next line.
            continue
        if complete:
            yield from _split(pending)
            pending = ""
    if pending.strip():
        raise ValueError(f"a quotation is not closed: {pending[:60]!r}")


def _split(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    command: list[str] = []
    skip = False
    for word in [*lexer, ";"]:
        if skip or word.startswith(">"):
            skip = word.startswith(">")
        elif word in SEPARATORS:
            while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
                command.pop(0)
            if command:
                yield command
            command = []
        else:
            command.append(word)


def checked_only(command: Sequence[str]) -> str | None:
    """Return why a command is not run, or ``None`` when it is."""
    for length in (2, 1):
        reason = CHECKED.get(" ".join(command[:length]))
        if reason is not None and command[1:2] != ["-c"]:
            return reason
    return None


def arguments_of(block: Block, command: Sequence[str]) -> list[str]:
    """Return what the tests call ``headway`` with, for a command that is run."""
    extra = block.words if block.kind == "run with" else SMALL[command[1]]
    return [*command[1:], *shlex.split(extra)]


def fate_of(block: Block, command: Sequence[str]) -> str:
    """Return in words what becomes of one command, for the count."""
    if block.is_live:
        return "run against a real server (tests/live/test_docs.py)"
    if block.kind == "not run":
        return f"checked, not run: {block.words}"
    reason = checked_only(command)
    if reason is not None:
        return f"checked, not run: {reason}"
    if "vllm" in command:
        return "run with vLLM's scheduler (tests/conformance/test_docs_vllm.py)"
    return "run (tests/unit/test_docs.py)"


def main() -> None:
    """Print the count."""
    shell: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for path in pages():
        for block in blocks_of(path):
            others[block.language] += block.language != "sh"
            if block.language == "sh":
                shell.update(fate_of(block, command) for command in commands_in(block.text))
    for what, count in shell.most_common():
        print(f"{count:4d}  {what}")
    print("Other blocks: " + ", ".join(f"{n} {name}" for name, n in others.most_common() if n))


if __name__ == "__main__":
    main()
