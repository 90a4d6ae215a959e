"""Every name of vLLM that the driver reads is there, and a missing one is told at start.

Run for another release by ``scripts/try_release.py``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import vllm

import headway
from headway.engines.vllm import vllm_names as names
from headway.engines.vllm.api_server import _parse_vllm_args
from headway.engines.vllm.driver import HeadwayMixin, SyncHeadway
from headway.engines.vllm.queue import GatedQueue
from headway.engines.vllm.steering import Steering
from headway.engines.vllm.swap_connector import SwapConnector
from headway.errors import UserError

SOURCE = Path(headway.__file__).parent
DRIVER = SOURCE / "engines" / "vllm"

ALL = {**names.CLASSES, **names.CONNECTOR}

OBJECTS = {
    "request": "vllm.v1.request.Request",
    "victim": "vllm.v1.request.Request",
    "manager": "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager",
    "block": "vllm.v1.core.kv_cache_utils.KVCacheBlock",
    "asked": "vllm.v1.structured_output.request.StructuredOutputRequest",
    "lora": "vllm.config.LoRAConfig",
    "lora_request": "vllm.lora.request.LoRARequest",
    "RequestStatus": "vllm.v1.request.RequestStatus",
    "params": "vllm.sampling_params.SamplingParams",
    "sampling_params": "vllm.sampling_params.SamplingParams",
    "output": "vllm.v1.core.sched.output.SchedulerOutput",
    "scheduler_output": "vllm.v1.core.sched.output.SchedulerOutput",
    "new": "vllm.v1.core.sched.output.NewRequestData",
    "scheduled_cached_reqs": "vllm.v1.core.sched.output.CachedRequestData",
    "per_client": "vllm.v1.engine.EngineCoreOutputs",
    "kv_cache_config": "vllm.v1.kv_cache_interface.KVCacheConfig",
    "connector_output": "vllm.v1.outputs.KVConnectorOutput",
}
"""What the driver's variables and attributes of these names are."""

ROOTS = {
    "scheduler": "",
    "scheduler_config": "scheduler_config.",
    "kv_cache_manager": "kv_cache_manager.",
    "_kv_cache_manager": "kv_cache_manager.",
    "cache": "kv_cache_manager.",
    "block_pool": "kv_cache_manager.block_pool.",
    "pool": "kv_cache_manager.block_pool.",
    "vllm_config": "vllm_config.",
    "parallel_config": "vllm_config.parallel_config.",
    "model_config": "vllm_config.model_config.",
    "device_config": "vllm_config.device_config.",
    "cache_config": "vllm_config.cache_config.",
}
"""What of :data:`names.ATTRIBUTES` they are the beginning of."""

FILES = (
    "driver.py", "steering.py", "hindered.py", "external.py", "kv_groups.py",
    "compat.py", "swap_connector.py", "queue.py", "clock.py", "model_roofline.py",
)  # fmt: skip
"""Where vLLM's scheduler and what hangs on it is read. The recorder and the watched core read
one name, ``vllm_config.parallel_config.data_parallel_index``."""


def probed(prefix: str) -> set[str]:
    """The names that the probe looks for right behind *prefix*, and the scheduler's methods."""
    behind = {
        p.removeprefix(prefix).partition(".")[0] for p in names.ATTRIBUTES if p.startswith(prefix)
    }
    return behind if prefix else behind | set(names.CLASSES[names.SCHEDULER])


def reads(path: Path) -> Iterator[tuple[str, str, int]]:
    """Yield (object, name, line) of every attribute read in a file, by dot or ``getattr``."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            yield last_name(node.value), node.attr, node.lineno
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("getattr", "hasattr")
            and isinstance(node.args[1], ast.Constant)
        ):
            yield last_name(node.args[0]), node.args[1].value, node.lineno


def last_name(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def own_names(kind: type) -> set[str]:
    """What a class of ours defines or sets itself, vLLM's part of it left out."""
    module = ast.parse((DRIVER / f"{kind.__module__.rpartition('.')[2]}.py").read_text())
    [tree] = [n for n in module.body if isinstance(n, ast.ClassDef) and n.name == kind.__name__]
    set_on_self = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute)
        and isinstance(n.ctx, ast.Store)
        and last_name(n.value) == "self"
    }
    return set_on_self | {n for n in vars(kind) if not n.startswith("__")}


@pytest.mark.parametrize("file", FILES)
def test_what_is_read_is_probed(file: str) -> None:
    """No attribute of vLLM's objects is read that the check at start does not look for."""
    unprobed = []
    for owner, name, line in reads(DRIVER / file):
        if owner in OBJECTS and name not in ALL[OBJECTS[owner]]:
            unprobed.append(f"{file}:{line}: {owner}.{name}")
        if owner in ROOTS and not name.startswith("headway") and name not in probed(ROOTS[owner]):
            unprobed.append(f"{file}:{line}: {owner}.{name}")
        if file in ("driver.py", "steering.py") and owner == "self":
            # Set on self in a step are names of vLLM's too; those that are ours begin otherwise.
            ours = name.startswith(("headway", "_")) and name not in probed("")
            own = own_names(HeadwayMixin) | own_names(Steering)
            if not (ours and name in own) and name not in probed(""):
                unprobed.append(f"{file}:{line}: self.{name}")
    assert not unprobed


def test_what_is_overridden_exists() -> None:
    """An override of something that vLLM does not call any more would never run."""
    for ours, path in (
        (HeadwayMixin, names.SCHEDULER),
        (SwapConnector, next(iter(names.CONNECTOR))),
    ):
        stock = names.found(path)
        overridden = {n for n, thing in vars(ours).items() if n in dir(stock) and callable(thing)}
        overridden = {n for n in overridden if not n.startswith("__")}
        assert overridden <= set(ALL[path])
    assert not GatedQueue.__abstractmethods__


def test_the_installed_release_has_every_name(lab: Any) -> None:
    """The probe passes on it, with swap too."""
    run = lab.start(lab.Engine(host_blocks=10, headway={}))
    assert list(names.missing_names(run.scheduler)) == []
    assert list(names.missing_of(names.CONNECTOR)) == []


@pytest.mark.parametrize(
    ("path", "name"), [(path, name) for path, all_names in ALL.items() for name in all_names]
)
def test_a_missing_name_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, path: str, name: str
) -> None:
    """Each in turn: the message names it, the release that lacks it, and those tried."""
    kind, have = names.found(path), names.names_of
    monkeypatch.setattr(
        names, "names_of", lambda other: have(other) - ({name} if other is kind else set())
    )
    with pytest.raises(UserError, match=rf"{vllm.__version__} has no '{kind.__name__}.{name}'"):
        names.refuse_missing(names.missing_of(ALL))


class Without:
    """A scheduler that lacks what is at one path."""

    def __init__(self, inner: Any, path: str) -> None:
        self._inner = inner
        self._name, _, self._rest = path.partition(".")

    def __getattr__(self, name: str) -> Any:
        if name != self._name:
            return getattr(self._inner, name)
        if not self._rest:
            raise AttributeError(name)
        return Without(getattr(self._inner, name), self._rest)


def test_a_missing_attribute_is_told_in_a_sentence(lab: Any) -> None:
    """Each in turn, on a scheduler that was built."""
    scheduler = lab.start(lab.Engine(headway={})).scheduler
    for path in names.ATTRIBUTES:
        with pytest.raises(UserError, match=f"has no 'scheduler.{path}'"):
            names.refuse_missing(names.missing_names(Without(scheduler, path)))


def test_a_class_that_is_gone_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """So is a method that does not take what we pass to it."""
    assert list(names.missing_of({"vllm.v1.nowhere.Thing": ("name",)})) == ["vllm.v1.nowhere.Thing"]
    monkeypatch.setitem(names.PARAMETERS, "_preempt_request", "gently")
    missing = list(names.missing_names(SyncHeadway))
    assert missing[-1] == "_preempt_request(gently=…)"


def imported() -> Iterator[tuple[str, str]]:
    """Yield (module, name) of everything that Headway's source imports from vLLM."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "vllm":
                yield from ((str(node.module), alias.name) for alias in node.names)


@pytest.mark.parametrize(("module", "name"), sorted(set(imported())))
def test_what_is_imported_exists(module: str, name: str) -> None:
    """Imports in functions too, which would fail when the function runs."""
    try:
        has = hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith("vllm"):
            raise
        # A release may need a package that the one in our lock does not.
        file = Path(vllm.__file__).parents[1].joinpath(*module.split(".")).with_suffix(".py")
        has = name in defined_in(file)
    assert has


def defined_in(file: Path) -> set[str]:
    kinds = (ast.ClassDef, ast.FunctionDef)
    return {node.name for node in ast.parse(file.read_text()).body if isinstance(node, kinds)}


@pytest.mark.parametrize("name", names.PLACES)
def test_what_has_moved_is_found(name: str) -> None:
    """In one of the places where releases keep it."""
    assert callable(names.moved(name))


def test_what_is_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A release that moved it again is told by name."""
    monkeypatch.setitem(names.PLACES, "make_arg_parser", ("vllm.nowhere", "vllm.envs"))
    with pytest.raises(UserError, match="has no 'make_arg_parser'"):
        names.moved("make_arg_parser")


def test_the_command_line_has_what_serve_reads() -> None:
    """vLLM's parsed arguments hold every option that ``headway serve`` looks at."""
    args: argparse.Namespace = _parse_vllm_args(["some/model"])
    read = {name for owner, name, _ in reads(DRIVER / "api_server.py") if owner == "args"}
    assert read
    assert read <= set(vars(args)) | {"arg"}


@pytest.mark.parametrize("attribute", ["engine_client", "args"])
def test_the_server_keeps_what_the_edge_looks_for(attribute: str) -> None:
    """The engine's client, whose calls promises go in with, and the API keys."""
    folder = Path(vllm.__file__).parent / "entrypoints"
    files = [p for p in folder.rglob("*.py") if f"state.{attribute} = " in p.read_text()]
    assert files


@pytest.mark.parametrize(
    ("words", "word"),
    [
        (["--max-model-lenn", "5"], "Did you mean --max-model-len?"),
        (["--max_model_lenn=5"], "Did you mean --max-model-len?"),
        (["--overlod", "refuse"], "Did you mean --overload?"),
        (["--port", "many"], "--port"),
    ],
)
def test_a_mistyped_option_is_one_sentence(
    words: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not 300 lines of usage and then the sentence."""
    with pytest.raises(UserError) as caught:
        _parse_vllm_args(["m", *words])
    assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "usage" not in capsys.readouterr().err
