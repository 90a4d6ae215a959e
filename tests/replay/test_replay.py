"""A recorded run replays to the same plans, byte for byte, anywhere."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from headway import registry
from headway.policy.log import replay
from headway.slo import STAMP, Slo


def record(
    lab: Any,
    path: Path,
    policy: str,
    seed: int,
    *,
    asynchronous: bool,
    slos: Sequence[Slo] = (),
    num: int = 70,
) -> Any:
    """Serve a pressed run through vLLM's scheduler, recording to *path*.

    Requests hold the promises of the mix, or *slos* in turn.
    """
    from headway.config import Settings
    from headway.engines.vllm.model_roofline import roofline
    from headway.latency.online import OnlineModel

    engine = lab.Engine(
        num_blocks=70,
        max_num_batched_tokens=512,
        asynchronous=asynchronous,
        headway={"policy": policy, "record": str(path)},
    )
    calls = [
        dataclasses.replace(c, abort_at_s=c.arrived_at_s + 2.0) if i % 7 == 0 else c
        for i, c in enumerate(lab.mixed(num, 4.0, seed))
    ]
    if slos:
        stamps = cycle(slo.stamp() for slo in slos)
        calls = [dataclasses.replace(c, xargs={STAMP: next(stamps)}) for c in calls]
    run = lab.VirtualRun(engine, lab.truth(seed))
    run.run(calls)
    run.scheduler.headway.close()
    fresh = Settings.parse({"policy": policy})
    return fresh.build(latency=OnlineModel(roofline(run.scheduler.vllm_config)))


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("policy", registry.names())
def test_a_recording_replays(lab: Any, tmp_path: Path, policy: str, asynchronous: bool) -> None:
    """A fresh scheduler fed the recorded events answers every question with the same bytes."""
    path = tmp_path / "run.jsonl"
    fresh = record(lab, path, policy, 3, asynchronous=asynchronous, num=45)
    lines = path.read_text().splitlines()
    plans = [line for line in lines if line.startswith('{"plan"')]
    assert len(plans) > 100
    assert list(replay(lines, fresh)) == plans


def test_tenants_targets_and_turns_replay(lab: Any, tmp_path: Path) -> None:
    """Who pays and what is aimed at is in the recording, and what came of it in its plans."""
    path = tmp_path / "run.jsonl"
    tight = Slo(ttft_s=0.2, tbt_s=0.1, class_name="chat", target=0.99, tenant="a")
    slos = [tight, tight, dataclasses.replace(tight, tenant="b", share=2.0), Slo(tenant="c")]
    fresh = record(lab, path, "headway", 3, asynchronous=True, slos=slos)
    lines = path.read_text().splitlines()
    plans = [line for line in lines if line.startswith('{"plan"')]
    assert any('"gives_way":["' in line for line in plans), "somebody gave way"
    assert any('"class chat":' in line for line in plans), "a target was missed"
    assert any("for its target" in line for line in plans), "its promises counted more"
    assert any("its turn by arrival" in line for line in plans), "somebody had its turn"
    assert list(replay(lines, fresh)) == plans


def test_the_same_seed_gives_the_same_bytes(lab: Any, tmp_path: Path) -> None:
    """Two runs of one seed leave identical recordings; another seed does not."""
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        record(lab, tmp_path / f"{name}.jsonl", "headway", seed, asynchronous=False, num=30)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b
    assert a != c


SCRIPT = """
import hashlib, random, sys
from headway import registry
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.log import event_line, plan_line
from headway.policy.view import EngineView
from headway.slo import NO_PROMISE, Slo

rng, core, free, digest = random.Random(5), registry.build("headway"), 60, hashlib.sha256()
now_s, held, left = 0.0, {}, {}

def tell(event):
    digest.update(event_line(event).encode())
    core.observe(event)

for step in range(400):
    for i in range(rng.randrange(3)):
        name = f"q{step}-{i}"
        slo = Slo(ttft_s=rng.uniform(0.1, 3), tbt_s=rng.choice([0.05, 0.2])) if i else NO_PROMISE
        left[name] = rng.randrange(1, 30)
        tell(Arrived(now_s, name, now_s, rng.randrange(1, 200), 40, slo))
    plan = core.plan(EngineView(60, free, 16, 16, 256), now_s)
    digest.update(plan_line(plan).encode())
    for leaving in (*plan.reject, *plan.refuse):
        tell(Finished(now_s, leaving.request_id, "refused"))
    for victim in plan.preempt:
        free += held.pop(victim.request_id)
    tokens, admitted, preempted = {}, {}, tuple(p.request_id for p in plan.preempt)
    for name in core.live.decoding:
        if name not in plan.hold and name not in preempted:
            tokens[name] = 1
    for chunk in plan.chunks:
        need = -(-core.live.requests[chunk.request_id].num_tokens // 16) + 2
        if chunk.admit:
            if need > free:
                continue
            free -= need
            held[chunk.request_id] = need
            admitted[chunk.request_id] = 0
        tokens[chunk.request_id] = chunk.num_tokens
    if tokens:
        tell(StepScheduled(now_s, tokens, admitted, preempted))
        now_s += 0.01 + 1e-4 * sum(tokens.values())
        emitted = {n: 1 for n in tokens if n in core.live.decoding}
        tell(StepDone(now_s, emitted))
        for name in emitted:
            left[name] -= 1
            if left[name] <= 0:
                free += held.pop(name)
                tell(Finished(now_s, name, "stopped"))
    else:
        now_s += 0.05
print(digest.hexdigest(), len(core.live.requests))
"""


def test_plans_do_not_depend_on_hashing() -> None:
    """Another interpreter with other string hashes decides the same, to the byte."""
    answers = set()
    for hash_seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        answers.add(done.stdout)
    assert len(answers) == 1
    assert len(hashlib.sha256().hexdigest()) < len(answers.pop())
