"""vLLM 0.6's rule written down as simply as it goes, beside the rival that follows it.

``tests/conformance/test_vllm_v0.py`` holds the rival together with that release's own code.
"""

from __future__ import annotations

from typing import Any

import pytest
from v0_loads import Load, Step, assert_same, drawn

from headway import registry


class Twin:
    """Lists in place of queues; every block is counted again whenever somebody asks."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.prompt = {name: prompt for name, _, prompt, _ in load.calls}
        self.output = {name: output for name, _, _, output in load.calls}
        self.emitted = dict.fromkeys(self.prompt, 0)
        self.kv = dict.fromkeys(self.prompt, 0)
        self.waiting: list[str] = []
        self.running: list[str] = []
        self.swapped: list[str] = []

    def length(self, name: str) -> int:
        return self.prompt[name] + self.emitted[name]

    def blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.load.block_size)

    @property
    def num_free(self) -> int:
        return self.load.num_blocks - sum(self.blocks(self.kv[name]) for name in self.running)

    def fits(self, name: str) -> bool:
        """Whether all of its tokens leave 1 % of the blocks free, and a seat is free."""
        left = self.num_free - self.blocks(self.length(name))
        return left >= self.load.num_blocks // 100 and len(self.running) < self.load.max_num_seqs

    def enter(self, name: str) -> None:
        self.running.append(name)
        self.kv[name] = self.length(name)

    def prompts(self) -> dict[str, int]:
        """Start whole prompts while they fit."""
        tokens: dict[str, int] = {}
        while not self.swapped and self.waiting and self.fits(self.waiting[0]):
            name = self.waiting[0]
            if sum(tokens.values()) + self.length(name) > self.load.max_num_batched_tokens:
                break
            self.waiting.remove(name)
            self.enter(name)
            tokens[name] = self.length(name)
        return tokens

    def decodes(self) -> tuple[dict[str, int], list[str]]:
        """Let everybody decode, oldest first, the youngest leaving while no block is free."""
        tokens: dict[str, int] = {}
        preempted: list[str] = []
        for name in list(self.running):
            while name in self.running and self.num_free == 0:
                preempted.append(self.running.pop())
            if name in self.running:
                self.kv[name] = self.length(name)
                tokens[name] = 1
        if self.load.preemption_mode == "swap":
            self.swapped += preempted
        else:
            self.waiting = preempted[::-1] + self.waiting
        while not preempted and self.swapped and self.fits(self.swapped[0]):
            name = self.swapped.pop(0)
            self.enter(name)
            tokens[name] = 1
        return tokens, preempted

    def steps(self) -> list[Step]:
        """Serve every call."""
        calls, now_s, found = list(self.load.calls), 0.0, []
        while calls or self.waiting or self.running or self.swapped:
            if not (self.waiting or self.running or self.swapped):
                now_s = max(now_s, calls[0][1])
            while calls and calls[0][1] <= now_s:
                self.waiting.append(calls.pop(0)[0])
            tokens, preempted = self.prompts(), []
            if not tokens:
                tokens, preempted = self.decodes()
            found.append(Step(now_s, tokens, preempted))
            now_s += self.load.step_s(sum(tokens.values()))
            for name in tokens:
                self.emitted[name] += 1
                if self.emitted[name] == self.output[name]:
                    self.running.remove(name)
        return found


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_every_step_is_the_twins(mode: str) -> None:
    """The same requests compute the same tokens at the same instants; the same are preempted."""
    num_preempted = 0
    for seed in range(8):
        load = drawn(seed, mode)
        theirs = Twin(load).steps()
        assert_same(load, as_by=theirs)
        num_preempted += sum(len(step.preempted) for step in theirs)
    assert num_preempted > 20, "the cache was not short"


# -- what that release would not serve ---------------------------------------------------------


def started(plan: Any) -> list[tuple[str, int]]:
    return [(chunk.request_id, chunk.num_tokens) for chunk in plan.chunks]


def test_a_prompt_longer_than_a_step_is_computed_alone(fake_engine: Any) -> None:
    """It takes three steps in which nobody decodes and nobody else starts."""
    engine = fake_engine(registry.build("vllm_v0"), num_blocks=100, max_step_tokens=32)
    engine.arrive("runs", 4, 20)
    engine.next_plan()
    engine.arrive("long", 70, 3)
    engine.arrive("next", 4, 3)
    plans = [engine.next_plan() for _ in range(4)]
    assert [started(p) for p in plans] == [
        [("long", 32)], [("long", 32)], [("long", 6)], [("next", 4)],
    ]  # fmt: skip
    assert [p.hold for p in plans] == [("runs",)] * 3 + [("runs", "long")]
    assert engine.next_plan().hold == ()


def test_alone_a_request_may_have_what_is_kept_free(fake_engine: Any) -> None:
    """It needs all of the blocks, of which one is the watermark, and is never preempted."""
    engine = fake_engine(registry.build("vllm_v0"), num_blocks=100, max_step_tokens=512)
    engine.arrive("all", 397, 3, 3)
    engine.drain(20)
    assert engine.finished == {"all": "length"}
    assert not any(plan.preempt for plan in engine.plans)


def test_without_room_on_the_host_a_victim_is_recomputed(fake_engine: Any) -> None:
    """And nobody waits for it to come back from there."""
    core = registry.build("vllm_v0", options={"preemption_mode": "swap"})
    engine = fake_engine(core, num_blocks=8)
    for name in "abc":
        engine.arrive(name, 8, 9, 9)
    engine.drain(200)
    ways = [victim.how for plan in engine.plans for victim in plan.preempt]
    assert ways
    assert set(ways) == {"recompute"}
    assert set(engine.finished.values()) == {"length"}
