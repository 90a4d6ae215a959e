"""vLLM 0.6's own scheduler under a virtual clock: its Python files, and stand-ins for the rest.

    python v0_release.py FOLDER < loads.json > steps.json

``FOLDER`` holds the ``vllm`` package of that release, its Python files are enough. Its scheduler,
block manager and sequences are imported from there; neither torch nor anything compiled is. Run in
a process of its own, because the project's vLLM has the same name.
"""

from __future__ import annotations

import enum
import importlib
import json
import logging
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

REAL = ("vllm.core", "vllm.sequence")
"""What is that release's own."""


class StandIn(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = type(name, (), {})
        setattr(self, name, made)
        return made


class StandIns:
    """Finds whatever the release imports and its scheduler does not need."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return a stand-in's specification for what is not to be imported."""
        is_real = any(name == real or name.startswith(real + ".") for real in REAL)
        if name.split(".")[0] not in ("vllm", "torch") or is_real:
            return None
        return ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """See :class:`importlib.abc.Loader`."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """See :class:`importlib.abc.Loader`."""


class Cache:
    """Makes a new object each time."""

    def __init__(self, builder: Any) -> None:
        self.get_object = builder

    def reset(self) -> None:
        """Nothing is kept."""


def release(folder: str) -> tuple[Any, Any]:
    """Return the release's modules ``vllm.core.scheduler`` and ``vllm.sequence``."""
    sys.meta_path.insert(0, StandIns())  # type: ignore[arg-type]
    importlib.import_module("vllm").__path__ = [f"{folder}/vllm"]
    utils: Any = importlib.import_module("vllm.utils")
    utils.Device = enum.Enum("Device", ["GPU", "CPU"])
    utils.PyObjectCache = Cache
    utils.cdiv = lambda a, b: -(-a // b)
    utils.chunk_list = lambda items, size: (items[i : i + size] for i in range(0, len(items), size))
    importlib.import_module("vllm.logger").init_logger = logging.getLogger  # type: ignore[attr-defined]
    logging.disable()
    return importlib.import_module("vllm.core.scheduler"), importlib.import_module("vllm.sequence")


def scheduler_of(core: Any, load: dict[str, Any]) -> Any:
    """Return that release's scheduler for the engine of a load, its other settings the defaults."""
    sizes = ("max_num_batched_tokens", "max_num_seqs")
    config = SimpleNamespace(
        **{name: load[name] for name in sizes},
        max_model_len=load["max_num_batched_tokens"],
        num_lookahead_slots=0,
        delay_factor=0.0,
        chunked_prefill_enabled=False,
        embedding_mode=False,
        preemption_mode="swap" if load["preemption_mode"] == "swap" else None,
        num_scheduler_steps=1,
        is_multi_step=False,
        send_delta_data=False,
        policy="fcfs",
    )
    cache = SimpleNamespace(
        block_size=load["block_size"],
        num_gpu_blocks=load["num_blocks"],
        num_cpu_blocks=2_000 if load["preemption_mode"] == "swap" else 0,
        sliding_window=None,
        enable_prefix_caching=False,
        is_attention_free=False,
    )
    return core.Scheduler(config, cache, None)


class Server:
    """That scheduler and a clock: what its engine does around ``schedule``."""

    def __init__(self, core: Any, sequence: Any, load: dict[str, Any]) -> None:
        self.sequence = sequence
        self.load = load
        self.scheduler = scheduler_of(core, load)
        self.preempted: list[str] = []
        preempt = self.scheduler._preempt

        def told(group: Any, *args: Any) -> Any:
            self.preempted.append(group.request_id)
            return preempt(group, *args)

        self.scheduler._preempt = told

    def group(self, number: int) -> Any:
        """Return call *number* as the engine queues it."""
        name, at_s, num_prompt, _ = self.load["calls"][number]
        inputs = {"prompt_token_ids": [1] * num_prompt}
        one = self.sequence.Sequence(number, inputs, self.load["block_size"])
        return self.sequence.SequenceGroup(name, [one], at_s, SimpleNamespace(n=1))

    def steps(self) -> list[tuple[float, dict[str, int], list[str]]]:
        """Serve every call; return the steps."""
        now_s, number, found = 0.0, 0, []
        calls, scheduler = self.load["calls"], self.scheduler
        while number < len(calls) or scheduler.has_unfinished_seqs():
            if not scheduler.has_unfinished_seqs():
                now_s = max(now_s, calls[number][1])
            while number < len(calls) and calls[number][1] <= now_s:
                scheduler.add_seq_group(self.group(number))
                number += 1
            _, scheduled, _ = scheduler.schedule()
            assert not scheduled.ignored_seq_groups, "the load is not one it serves"
            tokens = {
                one.seq_group.request_id: one.token_chunk_size
                for one in scheduled.scheduled_seq_groups
            }
            assert tokens, "it computes something"
            preempted, self.preempted = self.preempted, []
            found.append((now_s, tokens, preempted))
            swaps = self.load["preemption_mode"] == "swap"
            now_s += 0.25 if swaps else 0.01 + 0.001 * sum(tokens.values())
            self.deliver(scheduled)
        return found

    def deliver(self, scheduled: Any) -> None:
        """Give everybody computed a token, and end who has all of them."""
        logprob = self.sequence.Logprob(0.0)
        for one in scheduled.scheduled_seq_groups:
            group = one.seq_group
            (seq,) = group.get_seqs()
            group.update_num_computed_tokens(one.token_chunk_size)
            seq.append_token_id(1, {1: logprob})
            if seq.get_output_len() == self.load["calls"][seq.seq_id][3]:
                seq.status = self.sequence.SequenceStatus.FINISHED_STOPPED
        self.scheduler.free_finished_seq_groups()


def main() -> None:
    """See the module's docstring."""
    core, sequence = release(sys.argv[1])
    loads = json.load(sys.stdin)
    json.dump([Server(core, sequence, load).steps() for load in loads], sys.stdout)


if __name__ == "__main__":
    main()
