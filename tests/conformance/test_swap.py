"""Swap is real: what a plan swaps is copied, comes back whole, and leaves nothing behind."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from itertools import pairwise
from random import Random
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from vllm.config import ParallelConfig

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualEngine
from headway.engines.vllm import api_server, swap_connector
from headway.engines.vllm.edge import SLO_FILE_VARIABLE
from headway.engines.vllm.model_roofline import roofline
from headway.engines.vllm.swap_scheduler import HostSlots
from headway.engines.vllm.swap_worker import HostCopies
from headway.errors import InvariantError, UserError
from headway.latency.online import OnlineModel
from headway.policy.events import StepScheduled
from headway.policy.plan import Preempt, StepPlan

BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])


class Forced:
    """A policy core that says how each of its victims keeps its KV; otherwise the same object."""

    def __init__(self, inner: Any, how: Callable[[Preempt], str]) -> None:
        self._inner = inner
        self._how = how
        self.num_planned = 0

    def plan(self, *args: Any) -> StepPlan:
        plan: StepPlan = self._inner.plan(*args)
        self.num_planned += len(plan.preempt)
        preempt = tuple(dataclasses.replace(p, how=self._how(p)) for p in plan.preempt)
        return dataclasses.replace(plan, preempt=preempt)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def always(preempt: Preempt) -> str:
    return "swap"


def half(preempt: Preempt) -> str:
    return "swap" if int(preempt.request_id[1:]) % 2 else "recompute"


def start(lab: Any, how: Callable[[Preempt], str] = always, **engine: Any) -> Any:
    """A virtual server whose victims are swapped; the host's books are checked in each step."""
    given: dict[str, Any] = {"host_blocks": 64, "max_num_batched_tokens": 512}
    run = lab.start(lab.Engine(**{**given, "headway": {"policy": "fcfs"}, **engine}))
    scheduler = run.scheduler
    scheduler.headway = Forced(scheduler.headway, how)
    schedule, slots = scheduler.schedule, scheduler.headway_swap.slots

    def checked(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        slots.validate()
        running = {r.request_id for r in scheduler.running}
        assert not running & set(slots._stored), "who runs has no copy"
        assert set(slots._stored) <= set(scheduler.requests), "who has a copy is alive"
        return output

    scheduler.schedule = checked
    return run


def is_clean(lab: Any, run: Any) -> None:
    """Assert that no request left anything in vLLM, in the core or in host memory."""
    lab.is_clean(run)
    slots = run.scheduler.headway_swap.slots
    assert slots.num_free == slots.num_slots == run.engine.host_blocks
    assert slots.num_requests == 0


# -- the scheduler, under a virtual clock ----------------------------------------------------


class Once:
    """Swaps one request out in the plan of its tenth token."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def plan(self, *args: Any) -> StepPlan:
        plan: StepPlan = self._inner.plan(*args)
        victim = self._inner.live.requests.get("a")
        if victim is None or victim.num_output_tokens != 10 or victim.num_preemptions:
            return plan
        return dataclasses.replace(plan, preempt=(Preempt("a", "swap", "for the test"),))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def swapped_once(lab: Any, host_blocks: int) -> Any:
    """Serve a victim beside another; a block of 16 tokens takes 2 s over the link."""
    engine = lab.Engine(
        host_blocks=host_blocks,
        copy_gib_per_s=1.0,
        kv_bytes_per_token=2**30 // 8,
        headway={"policy": "fcfs"},
    )
    run = lab.VirtualRun(engine, lab.truth(noise=0.0), keep_steps=True)
    run.scheduler.headway = Once(run.scheduler.headway)
    run.run([lab.Call("a", 0.0, 40, 20), lab.Call("b", 0.0, 8, 40)])
    return run


def test_whole_blocks_go_out_and_come_back(lab: Any) -> None:
    """49 tokens have KV: three blocks cross the link both ways, one token is computed again."""
    run = swapped_once(lab, host_blocks=3)
    assert (run.num_preemptions, run.link.num_swapped, run.link.num_blocks_copied) == (1, 1, 6)
    resumed = next(t for _, t in run.steps if t.get("a", 1) != 1 and t["a"] != 40)
    assert resumed["a"] == 2, "the token beyond the whole blocks, and the newest"
    waits_s = [row.begins_s - before.ends_s for before, row in pairwise(run.rows)]
    assert [round(w, 9) for w in waits_s if w > 1e-9] == [6.0, 6.0], "the link is waited for"
    lab.all_served(run.outcomes)
    is_clean(lab, run)


@pytest.mark.parametrize(
    ("host_blocks", "found", "kept"),
    [(8, 48, ("a",)), (2, 0, ()), (0, 0, ())],
    ids=["kept", "no room", "no connector"],
)
def test_the_core_hears_what_was_kept_and_what_came_back(
    lab: Any, host_blocks: int, found: int, kept: tuple[str, ...]
) -> None:
    """Whether a planned swap really was one, and how many tokens need no second computation."""
    heard: list[Any] = []
    engine = lab.Engine(host_blocks=host_blocks, headway={"policy": "fcfs"})
    run = lab.VirtualRun(engine, lab.truth())
    core: Any = Once(run.scheduler.headway)
    run.scheduler.headway = core
    observe = core._inner.observe

    def hear(event: Any) -> None:
        heard.append(event)
        observe(event)

    core.observe = hear
    run.run([lab.Call("a", 0.0, 40, 20), lab.Call("b", 0.0, 8, 40)])
    steps = [e for e in heard if isinstance(e, StepScheduled)]
    assert [e.swapped for e in steps if e.preempted == ("a",)] == [kept]
    assert [e.admitted["a"] for e in steps if "a" in e.admitted] == [0, found]
    assert [phase for _, phase in run.outcomes["a"].phases] == [
        "queued", "prefill", "decode", "swapped" if kept else "preempted", "prefill", "decode",
    ]  # fmt: skip


def test_a_full_host_pool_means_recompute(lab: Any) -> None:
    """A victim of three blocks does not fit two: all of it is computed again."""
    run = swapped_once(lab, host_blocks=2)
    assert (run.num_preemptions, run.link.num_swapped, run.link.num_blocks_copied) == (1, 0, 0)
    assert any(tokens.get("a") == 50 for _, tokens in run.steps)
    lab.all_served(run.outcomes)
    is_clean(lab, run)


def test_the_bandwidth_is_measured(lab: Any) -> None:
    """After the first copies the scheduler knows what a block costs on the link."""
    run = swapped_once(lab, host_blocks=3)
    connector = run.scheduler.headway_swap
    assert connector.block_bytes / connector.bytes_per_s == pytest.approx(2.0)


@BOTH
@pytest.mark.parametrize(
    ("policy", "how", "host_blocks"),
    [("fcfs", always, 200), ("fcfs", half, 12), ("headway", always, 200)],
)
def test_everyone_is_served(
    lab: Any, policy: str, how: Callable[[Preempt], str], host_blocks: int, asynchronous: bool
) -> None:
    """Under pressure each gets its tokens, with ample host memory and with hardly any."""
    run = start(
        lab,
        how,
        num_blocks=70,
        host_blocks=host_blocks,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    outcomes = run.run(lab.mixed(60, 4.0, 1))
    lab.all_served(outcomes)
    is_clean(lab, run)
    assert 0 < run.link.num_swapped <= run.num_preemptions
    if host_blocks == 200:  # Of a prompt in a step in flight there is nothing to copy.
        least = 0.7 if asynchronous else 0.9
        assert run.link.num_swapped >= least * run.scheduler.headway.num_planned


@BOTH
def test_an_abort_storm_empties_the_host(lab: Any, asynchronous: bool) -> None:
    """Half the clients hang up, at random and while swapped out: all books end as they began."""
    rng = Random(11)
    calls = [
        dataclasses.replace(c, abort_at_s=c.arrived_at_s + rng.expovariate(0.3)) if i % 2 else c
        for i, c in enumerate(lab.mixed(80, 6.0, 4))
    ]
    run = start(lab, num_blocks=60, host_blocks=100, asynchronous=asynchronous)
    slots, step = run.scheduler.headway_swap.slots, run.step
    seen: set[str] = set()
    left: set[str] = set()

    def hang_up() -> None:
        step()
        for request_id in sorted(set(slots._stored) - seen):
            seen.add(request_id)
            if rng.random() < 0.5:
                left.add(request_id)
                run.abort(request_id)

    run.step = hang_up
    outcomes = run.run(calls)
    is_clean(lab, run)
    assert len(seen) > len(left) > 2, "some left while their KV was in host memory, some resumed"
    stayed = {i: o for i, o in outcomes.items() if o.call.abort_at_s is None and i not in left}
    lab.all_served(stayed)


@BOTH
def test_with_a_prefix_cache_only_the_rest_is_copied_back(lab: Any, asynchronous: bool) -> None:
    """Blocks of a victim that are still in the prefix cache do not cross the link again."""
    run = start(lab, num_blocks=60, host_blocks=400, prefix_caching=True, asynchronous=asynchronous)
    calls = [
        dataclasses.replace(c, hash_ids=("abcd"[i % 4],), hash_tokens=200)
        for i, c in enumerate(lab.mixed(50, 8.0, 2))
    ]
    copied_out = 0
    copy = run.link.carry_out

    def counted(metadata: Any, now_s: float) -> None:
        nonlocal copied_out
        copied_out += sum(len(c.slots) for c in metadata.out)
        copy(metadata, now_s)

    run.link.carry_out = counted
    lab.all_served(run.run(calls))
    is_clean(lab, run)
    assert 0 < copied_out < run.link.num_blocks_copied < 2 * copied_out


def test_a_reset_of_the_connector_drops_the_copies(lab: Any) -> None:
    """After new weights the old KV is of no use: vLLM's reset reaches host memory."""
    run = start(lab, num_blocks=70, host_blocks=200)
    for call in lab.mixed(40, 100.0, 1):
        run.clock.time_s = max(run.clock.time_s, call.arrived_at_s)
        run.add(call)
    slots = run.scheduler.headway_swap.slots
    while not slots.num_requests:
        run.step()
    assert run.scheduler.reset_connector_cache()
    assert slots.num_requests == 0
    lab.all_served(run.run([]))
    is_clean(lab, run)


def test_stock_vllm_ignores_the_connector(lab: Any) -> None:
    """Without a scheduler that plans swaps nothing is ever copied."""
    run = lab.VirtualRun(lab.Engine(num_blocks=70, host_blocks=50), lab.truth())
    lab.all_served(run.run(lab.mixed(40, 6.0, 1)))
    assert run.num_preemptions > 0
    assert run.link.num_blocks_copied == 0


# -- two engines, one truth ------------------------------------------------------------------

SHAPES: dict[str, dict[str, Any]] = {
    "ample": {"num_blocks": 44, "host_blocks": 300},
    "tight": {"num_blocks": 60, "host_blocks": 10},
    "slow link": {"num_blocks": 60, "host_blocks": 300, "copy_gib_per_s": 0.05},
    "tiny blocks": {"num_blocks": 400, "host_blocks": 900, "block_size": 2},
    "prefix cache": {"num_blocks": 44, "host_blocks": 300, "prefix_caching": True},
}
CASES = [(name, "fcfs") for name in SHAPES] + [("ample", "headway"), ("prefix cache", "headway")]


@BOTH
@pytest.mark.parametrize(("name", "policy"), CASES)
def test_the_simulator_swaps_alike(lab: Any, name: str, policy: str, asynchronous: bool) -> None:
    """Same tokens of the same requests at the same instants as in the simulator, to the bit."""
    engine = lab.Engine(
        **SHAPES[name],
        max_num_batched_tokens=512,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    theirs = lab.VirtualRun(engine, lab.truth(3))
    how = half if name == "ample" else always
    theirs.scheduler.headway = Forced(theirs.scheduler.headway, how)
    shared = {f.name for f in dataclasses.fields(VirtualEngine)} - {"num_blocks"}
    given = {key: getattr(engine, key) for key in shared}
    latency = OnlineModel(roofline(theirs.scheduler.vllm_config))
    core: Any = Forced(registry.build(policy, latency=latency), how)
    sim = SimRun(
        VirtualEngine(**given, num_blocks=engine.num_blocks - 1),
        lab.truth(3),
        core,
        keep_schedule=True,
    )
    calls = [
        dataclasses.replace(
            c,
            xargs=c.xargs if i % 3 else {},
            hash_ids=("ab"[i % 2],),
            hash_tokens=40,
            abort_at_s=c.arrived_at_s + 3.0 if i % 5 == 0 else None,
        )
        for i, c in enumerate(lab.mixed(30, 8.0, 6, long=(300, 600)))
    ]
    served, simulated = theirs.run(calls), sim.run(calls)
    assert theirs.steps == sim.schedule
    assert [list(t) for _, t in theirs.steps] == [list(t) for _, t in sim.schedule]
    assert sim.machine.host.link.num_blocks_copied == theirs.link.num_blocks_copied > 0
    assert sim.num_preemptions["swap"] == theirs.link.num_swapped > 0
    for request_id, one in served.items():
        other = simulated[request_id]
        assert list(other.emitted_at_s) == one.emitted_at_s
        assert (other.finish_reason, other.phases) == (one.finish_reason, one.phases)
    is_clean(lab, theirs)
    assert sim.machine.host.num_free == engine.host_blocks


# -- the copies themselves -------------------------------------------------------------------


def caches(num_blocks: int, seed: int) -> dict[str, torch.Tensor]:
    """KV caches in the layouts attention backends use; two layers share one."""
    torch.manual_seed(seed)
    first = torch.rand(num_blocks, 2, 4, 8)  # blocks, heads, tokens, width
    behind = torch.rand(2, num_blocks, 4, 3, dtype=torch.float64)  # behind keys and values
    split = torch.rand(3 * num_blocks, 5).to(torch.bfloat16)  # three kernel blocks a block
    packed = torch.rand(num_blocks, 2, 6)  # all layers of a block side by side
    return {
        "first": first,
        "shares first": first,
        "behind": behind,
        "split": split,
        "packed 0": packed[:, 0],
        "packed 1": packed[:, 1],
    }


def block_of(kv: dict[str, torch.Tensor], block: int) -> list[torch.Tensor]:
    """Return what the block with this number holds in every layer, the obvious way."""
    return [
        kv["first"][block].clone(),
        kv["behind"][:, block].clone(),
        kv["split"][3 * block : 3 * block + 3].clone(),
        kv["packed 0"][block].clone(),
        kv["packed 1"][block].clone(),
    ]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def scribble(kv: dict[str, torch.Tensor], block: int) -> None:
    """Somebody else gets the block and writes into it."""
    kv["first"][block].uniform_()
    kv["behind"][:, block].uniform_()
    kv["split"][3 * block : 3 * block + 3].uniform_()
    kv["packed 0"][block].uniform_()
    kv["packed 1"][block].uniform_()


@pytest.mark.parametrize("seed", range(3))
def test_what_comes_back_is_what_went_out(seed: int) -> None:
    """Random victims, returns and ends on two ranks: every block holds its request's KV again."""
    rng = Random(seed)
    num_blocks, size = 40, 4
    slots = HostSlots(25, size)
    ranks = [caches(num_blocks, 10 * seed + rank) for rank in range(2)]
    workers = [HostCopies(kv, num_blocks, slots.num_slots) for kv in ranks]
    free = list(range(num_blocks))
    running: dict[str, list[int]] = {}
    truth: dict[str, list[list[list[torch.Tensor]]]] = {}
    num_back = num_refused = 0
    for step in range(120):
        returning: list[tuple[str, int, list[int]]] = []
        victims = [i for i in running if rng.random() < 0.3]
        for name in victims:
            blocks = running.pop(name)
            num_tokens = len(blocks) * size - rng.randrange(size)
            kept = [[block_of(kv, b) for b in blocks[: num_tokens // size]] for kv in ranks]
            if slots.try_store(name, blocks, num_tokens):
                truth[name] = kept
            else:
                num_refused += 1
            free.extend(blocks)
        rng.shuffle(free)
        for name in [i for i in truth if rng.random() < 0.3]:
            if rng.random() < 0.2:
                slots.drop(name)
                del truth[name]
                continue
            num_kept = slots.tokens(name) // size
            if len(free) <= num_kept:
                continue
            blocks = [free.pop() for _ in range(num_kept + 1)]
            cached = rng.randrange(num_kept)
            slots.load(name, blocks, cached * size)
            running[name] = blocks
            returning.append((name, cached, blocks))
        slots.validate()
        out, back = pickle.loads(pickle.dumps(slots.take_copies()))
        for worker in workers:
            worker.out(out)
        for kv in ranks:  # Blocks of victims are anybody's now.
            for block in (*free, *(b for _, _, blocks in returning for b in blocks)):
                scribble(kv, block)
        for worker in workers:
            worker.back(back)
        for name, cached, blocks in returning:
            for rank, kept in enumerate(truth.pop(name)):
                for index in range(cached, len(kept)):
                    assert same(block_of(ranks[rank], blocks[index]), kept[index]), (step, name)
                    num_back += 1
        slots.validate()
        if len(free) > 8:
            running[f"r{step}"] = [free.pop() for _ in range(rng.randint(1, 8))]
    assert num_back > 80
    assert num_refused > 2
    slots.clear()
    assert slots.num_free == slots.num_slots
    assert workers[0].take_times()[0] == workers[1].take_times()[0] > 0
    assert workers[0].take_times() == (0, 0.0)


def test_a_slot_is_not_given_away_before_it_was_read() -> None:
    """Copies out come first in a step: a slot to be read in it cannot be one written in it."""
    slots = HostSlots(2, 4)
    assert slots.try_store("a", [5, 6], 8)
    slots.take_copies()
    slots.load("a", [7, 8], 0)
    assert slots.num_free == 0
    assert not slots.try_store("b", [1, 2], 8)
    slots.take_copies()
    assert slots.try_store("b", [1, 2], 8)


def test_the_books_notice_a_lost_slot() -> None:
    """``validate`` recomputes them, and a second copy of one request is refused loudly."""
    slots = HostSlots(4, 4)
    assert slots.try_store("a", [5, 6], 9)
    slots.validate()
    with pytest.raises(InvariantError, match="a copy of it is kept"):
        slots.try_store("a", [1], 4)
    slots._free.pop()
    with pytest.raises(InvariantError, match="lost or doubled"):
        slots.validate()


def test_ranks_report_the_slower_copy() -> None:
    """All ranks copy at once; the step waits for the slowest."""
    fast, slow = swap_connector.CopyTimes(4, 1.0), swap_connector.CopyTimes(4, 2.0)
    assert fast.aggregate(slow) is slow is slow.aggregate(fast)


# -- mistakes --------------------------------------------------------------------------------


def serve_options(**given: Any) -> api_server.ServeOptions:
    return api_server.ServeOptions("m", given.pop("policy", None), None, None, (), **given)


@pytest.mark.parametrize("gib", [0.0, -1.0, float("nan"), float("inf")])
def test_a_size_that_is_none_is_told(gib: float) -> None:
    """Before vLLM is asked for anything."""
    with pytest.raises(UserError, match="--swap-gib must be a number of GiB greater than 0"):
        api_server.check(serve_options(swap_gib=gib))


def test_stock_ignores_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Plain vLLM has no swap; that is said, not refused."""
    api_server.check(serve_options(policy="stock", swap_gib=1.0))
    told = capsys.readouterr().err
    assert "ignores --overload, --slo, --swap-gib, --record, --shadow, --budgets" in told


def arguments(**given: Any) -> Any:
    import argparse

    common: dict[str, Any] = {
        "scheduler_cls": None, "additional_config": {}, "middleware": [],
        "async_scheduling": False, "kv_transfer_config": None, "max_num_queued_reqs": 100,
        "scheduling_policy": "fcfs", "long_prefill_token_threshold": 0, "shutdown_timeout": 0,
    }  # fmt: skip
    return argparse.Namespace(**{**common, **given})


def test_serve_puts_the_connector_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a GiB for each worker, and vLLM can build the class from what it is told."""
    from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory

    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)
    args = arguments()
    api_server._plug_in(args, serve_options(swap_gib=0.5))
    given = args.kv_transfer_config
    assert given.kv_connector_extra_config == {"host_bytes": 2**29}
    assert KVConnectorFactory.get_connector_class(given) is swap_connector.SwapConnector
    assert not given.is_kv_consumer, "vLLM would hold freed blocks back"
    args = arguments()
    api_server._plug_in(args, serve_options())
    assert args.kv_transfer_config is None


def test_two_connectors_are_one_too_many() -> None:
    """The sentence names both options."""
    with pytest.raises(UserError, match="--kv-transfer-config; drop one"):
        api_server._plug_in(arguments(kv_transfer_config=object()), serve_options(swap_gib=1.0))


@pytest.mark.parametrize(
    "sizes", [{"pipeline_parallel_size": 2}, {"decode_context_parallel_size": 2}]
)
def test_parallelism_that_cannot_be_swapped_is_refused(sizes: dict[str, int]) -> None:
    """Ranks must hold shards of equal size; tensor parallel ranks do."""
    alone = ParallelConfig()
    swap_connector.refuse_parallelism(alone)
    [(name, size)] = sizes.items()
    object.__setattr__(alone, name, size)  # Not as vLLM's own checks would have it here.
    with pytest.raises(UserError, match=name):
        swap_connector.refuse_parallelism(alone)


def test_unknown_layouts_and_states_are_refused() -> None:
    """Rather than copied wrongly."""
    with pytest.raises(UserError, match="does not know the KV layout of odd"):
        HostCopies({"odd": torch.zeros(7, 3, 4)}, 5, 1)
    with pytest.raises(UserError, match="no attention cache"):
        HostCopies({"mamba": [torch.zeros(5)]}, 5, 1)


def test_models_of_several_kinds_of_cache_are_refused(lab: Any) -> None:
    """One block table a request is what the connector understands."""
    config = lab.VirtualRun(lab.Engine(), lab.truth()).scheduler.kv_cache_config
    assert swap_connector.block_bytes(config) == 2 * 16 * 4 * 16 * 4
    two = dataclasses.replace(config, kv_cache_groups=2 * config.kv_cache_groups)
    with pytest.raises(UserError, match="full attention"):
        swap_connector.block_bytes(two)
