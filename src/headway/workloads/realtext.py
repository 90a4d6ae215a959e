"""The demo's workload, made of real text every Python has: the standard library's docstrings.

Nothing is downloaded. The same seed gives the same requests on the same Python.
"""

from __future__ import annotations

import importlib
import inspect
import re
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from headway.workloads.schema import HashId, WorkloadRequest

SLO_FILE = Path(__file__).with_name("demo_slo.toml")
"""The promises of the classes below."""

CHARS_PER_TOKEN = 3.7
"""Characters of this text to one token of SmolLM2's vocabulary; measured, see the test."""

MODULES = (
    "argparse", "ast", "asyncio.events", "asyncio.tasks", "base64", "bisect", "calendar", "cmd",
    "collections", "configparser", "contextlib", "copy", "csv", "datetime", "decimal", "difflib",
    "doctest", "email.message", "enum", "fileinput", "fractions", "functools", "gettext", "glob",
    "hashlib", "heapq", "hmac", "http.client", "http.cookies", "imaplib", "inspect", "ipaddress",
    "itertools", "json", "logging", "mailbox", "mimetypes", "optparse", "pathlib", "pickle",
    "pprint", "random", "re", "sched", "shelve", "shutil", "smtplib", "socketserver",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading",
    "tokenize", "traceback", "unittest.case", "unittest.mock",
    "urllib.parse", "urllib.request", "uuid", "weakref", "zipfile",
)  # fmt: skip

QUESTIONS = (
    "What is `{name}` in Python good for? Its documentation says: {line} Answer in two sentences.",
    "Explain `{name}` to someone who is new to Python. Hint: {line}",
    "When would I use `{name}`? The manual only says: {line}",
    "Give me one short example that uses `{name}`. ({line})",
    "My colleague says `{name}` is the right tool here. Its summary reads: {line} Is it? Why?",
    "Write a one-line comment for code that calls `{name}`. Documentation: {line}",
    "What can go wrong when I call `{name}`? From the docs: {line}",
    "Is there a simpler alternative to `{name}`? What it does: {line}",
)
DOCUMENT_TASKS = (
    "Summarise the following part of the Python documentation in a few sentences.",
    "What are the three most important points of this text?",
    "Write a short abstract of this documentation for a colleague.",
)
JOB_TASKS = (
    "Rewrite this documentation as a list of short points, without leaving anything out.",
    "Turn this text into questions and answers for a quiz.",
    "Translate this reference text into plain language for beginners, step by step.",
)


@dataclass(frozen=True, slots=True)
class TextClass:
    """One kind of user: how often, how long the text is in tokens, how long the answer may be."""

    name: str
    share: float
    min_text_tokens: int
    max_text_tokens: int
    max_output_tokens: int
    tasks: tuple[str, ...]


CLASSES = (
    TextClass("chat", 0.7, 0, 0, 96, QUESTIONS),
    TextClass("summary", 0.2, 480, 1450, 96, DOCUMENT_TASKS),
    TextClass("batch", 0.1, 180, 560, 160, JOB_TASKS),
)


def demo_workload(num_requests: int, seed: int) -> list[WorkloadRequest]:
    """Return the mixed workload, one request a second, for :mod:`.arrivals` to give real times.

    The shares of the classes are exact (rounded to whole requests); their order is random.
    Every text starts at its own place of the corpus, so prefix caching has nothing to share.
    """
    rng = np.random.default_rng([seed, 0xD0C5])
    kinds = [kind for kind in CLASSES[1:] for _ in range(round(kind.share * num_requests))]
    kinds = [CLASSES[0]] * (num_requests - len(kinds)) + kinds
    order = rng.permutation(num_requests)
    requests = []
    for index in range(num_requests):
        kind = kinds[order[index]]
        prompt = _prompt(kind, rng)
        requests.append(
            WorkloadRequest(
                id=f"{kind.name}-{index}",
                arrived_at_s=float(index),
                num_prompt_tokens=tokens_in(prompt),
                num_output_tokens=kind.max_output_tokens,
                slo_class=kind.name,
                prompt=prompt,
                max_output_tokens=kind.max_output_tokens,
            )
        )
    return requests


def made_up_prompt(num_tokens: int, seed: int) -> str:
    """Return real text of about *num_tokens* tokens, for a trace that has lengths only."""
    return excerpt(num_tokens, np.random.default_rng([seed, 0x7E87]))


def text_for(request: WorkloadRequest, seed: int) -> str:
    """Return the text of a request: its own, or made up, as long as it says.

    What a trace says prompts have in common (``hash_ids``, ``prefix_id``) begins their texts, so a
    server with prefix caching finds it.
    """
    if request.prompt is not None:
        return request.prompt
    begin = _common_text(request)
    num_own = request.num_prompt_tokens - round(len(begin) / CHARS_PER_TOKEN)
    return begin + made_up_prompt(num_own, seed) if num_own > 0 else begin


def _common_text(request: WorkloadRequest) -> str:
    left = request.num_prompt_tokens
    if request.prefix_id is not None:
        num_tokens = min(request.prefix_tokens or left, left)
        return excerpt(num_tokens, _rng_of(request.prefix_id))
    parts = []
    for hash_id in request.hash_ids:
        num_tokens = min(request.hash_tokens, left)
        if num_tokens <= 0:
            break
        parts.append(excerpt(num_tokens, _rng_of(hash_id)))
        left -= num_tokens
    return "".join(parts)


def _rng_of(name: HashId) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32(str(name).encode()), 0x7E88])


def tokens_in(text: str) -> int:
    """Return about how many tokens *text* has."""
    return max(1, round(len(text) / CHARS_PER_TOKEN))


def excerpt(num_tokens: int, rng: np.random.Generator) -> str:
    """Return about *num_tokens* tokens of the corpus from a random line on (it wraps around)."""
    text = corpus()
    num_chars = max(1, int(num_tokens * CHARS_PER_TOKEN))
    start = text.find("\n", int(rng.integers(len(text)))) + 1
    copies = (start + num_chars) // len(text) + 1
    return (text * copies)[start : start + num_chars]


def _prompt(kind: TextClass, rng: np.random.Generator) -> str:
    task = kind.tasks[int(rng.integers(len(kind.tasks)))]
    if kind.max_text_tokens == 0:
        name, line = topics()[int(rng.integers(len(topics())))]
        return task.format(name=name, line=line)
    num_tokens = int(rng.integers(kind.min_text_tokens, kind.max_text_tokens + 1))
    return f"{task}\n\n{excerpt(num_tokens, rng)}"


@cache
def sections() -> tuple[tuple[str, str], ...]:
    """Return ``(dotted name, docstring)`` of every documented public thing in ``MODULES``."""
    found: dict[str, str] = {}
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        _collect(found, module_name, module)
        for name, member in sorted(vars(module).items()):
            if name.startswith("_") or getattr(member, "__module__", None) != module.__name__:
                continue
            _collect(found, f"{module_name}.{name}", member)
            if inspect.isclass(member):
                for inner, method in sorted(vars(member).items()):
                    if not inner.startswith("_") and callable(method):
                        _collect(found, f"{module_name}.{name}.{inner}", method)
    return tuple(found.items())


def _collect(found: dict[str, str], name: str, thing: object) -> None:
    doc = getattr(thing, "__doc__", None)
    if isinstance(doc, str) and len(doc) > 20:
        found[name] = re.sub(r"[ \t]+", " ", inspect.cleandoc(doc))


@cache
def corpus() -> str:
    """Return all docstrings as one text."""
    return "\n\n".join(f"{name}\n{doc}" for name, doc in sections()) + "\n"


@cache
def topics() -> tuple[tuple[str, str], ...]:
    """Return ``(dotted name, first sentence)`` of things one can ask a short question about."""
    found = []
    for name, doc in sections():
        line = " ".join(doc.split("\n\n")[0].split())
        if name.count(".") and 25 <= len(line) <= 160:
            found.append((name, line if line.endswith(".") else line + "."))
    return tuple(found)
