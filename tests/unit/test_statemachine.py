"""Whatever happens in whatever order: books balance, nothing is lost, nothing over-allocated."""

from __future__ import annotations

import math
import os
from dataclasses import astuple

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from headway import registry
from headway.kit.ledger import KvLedger
from headway.request import Request, Standing, State
from headway.slo import NO_PROMISE, Slo

LONG = os.environ.get("HEADWAY_LONG") == "1"

SLOS = (
    NO_PROMISE,
    Slo(ttft_s=0.5, tbt_s=0.05, class_name="chat"),
    Slo(ttft_s=2.0, tbt_s=0.02, class_name="code"),
    Slo(jct_s=3.0, class_name="batch"),
    Slo(tbt_s=0.015, class_name="stream"),
    Slo(ttft_s=0.001, tbt_s=0.001, class_name="impossible"),
    Slo(ttft_s=1.0, tbt_s=0.05, jct_s=2.0, weight=5.0, class_name="gold"),
)

NUM_EXAMPLES = {"headway": 60, "fcfs": 30}
"""Of the default, and of first come, first served; the other presets get 12."""

ENOUGH = settings(max_examples=60, derandomize=True, phases=(Phase.generate,))
"""No shrinking: a failure that is a request stuck for ever would take minutes to shrink."""

prompts = st.one_of(st.integers(1, 30), st.integers(1, 260))
outputs = st.integers(1, 60)


@pytest.mark.parametrize("policy", registry.names())
def test_scheduler(fake_engine, policy: str) -> None:  # type: ignore[no-untyped-def]
    """Driven by an honest engine that refuses, preempts and loses clients at random."""

    class Machine(RuleBasedStateMachine):
        @initialize(
            overload=st.sampled_from(registry.OVERLOADS),
            depth=st.integers(0, 1),
            num_blocks=st.sampled_from([1, 8, 48, 200]),
            max_running=st.sampled_from([2, 8]),
            max_step_tokens=st.sampled_from([16, 64, 256]),
        )
        def begin(
            self, overload: str, depth: int, num_blocks: int, max_running: int, max_step_tokens: int
        ) -> None:
            options = {"max_wait_s": 2.0} if policy in ("slack", "headway") else {}
            core = registry.build(policy, overload=overload, options=options)
            self.engine = fake_engine(
                core,
                num_blocks=num_blocks,
                block_size=4,
                max_running=max_running,
                max_step_tokens=max_step_tokens,
                depth=depth,
            )
            self.count = 0

        @rule(prompt=prompts, output=outputs, spare=st.integers(0, 40), slo=st.sampled_from(SLOS))
        def arrive(self, prompt: int, output: int, spare: int, slo: Slo) -> None:
            self.count += 1
            self.engine.arrive(f"r{self.count}", prompt, output, output + spare, slo)

        @rule(number=st.integers(5, 30), slo=st.sampled_from(SLOS))
        def burst(self, number: int, slo: Slo) -> None:
            for i in range(number):
                self.count += 1
                self.engine.arrive(f"r{self.count}", 1 + 7 * i % 50, 1 + i % 9, 12, slo)

        @precondition(lambda self: self.engine.jobs)
        @rule(data=st.data())
        def hang_up(self, data: st.DataObject) -> None:
            self.engine.abort(data.draw(st.sampled_from(sorted(self.engine.jobs))))

        @precondition(lambda self: self.engine.running)
        @rule(data=st.data())
        def engine_preempts(self, data: st.DataObject) -> None:
            self.engine.preempt(data.draw(st.sampled_from(self.engine.running)))

        @rule(data=st.data())
        def step(self, data: st.DataObject) -> None:
            self.engine.step()
            self.engine.agrees()

        @rule(number=st.integers(2, 40))
        def steps(self, number: int) -> None:
            for _ in range(number):
                self.engine.step()
                self.engine.agrees()
                self.engine.core.validate()

        @rule(salt=st.integers(0, 3))
        def step_of_a_picky_engine(self, salt: int) -> None:
            self.engine.refusing = lambda request_id: (int(request_id[1:]) + salt) % 3 == 0
            self.engine.step()
            self.engine.refusing = lambda request_id: False
            self.engine.agrees()

        @rule(seconds=st.floats(0.01, 3.0))
        def time_passes(self, seconds: float) -> None:
            self.engine.now_s += seconds

        @invariant()
        def books_balance(self) -> None:
            if hasattr(self, "engine"):
                self.engine.core.validate()
                assert set(self.engine.core.live.requests) == set(self.engine.jobs)

        @invariant()
        def it_can_be_asked(self) -> None:
            """At any instant, of any policy, with numbers for answers."""
            if hasattr(self, "engine"):
                core, now_s = self.engine.core, self.engine.now_s
                told = astuple(core.load(now_s))
                assert all(0.0 <= value < math.inf for value in told), told
                for slo in (Slo(ttft_s=1.0, tbt_s=0.05), Slo(jct_s=3.0), NO_PROMISE):
                    quote = core.quote(40, 3, slo, now_s)
                    assert quote.feasible <= (quote.slack_s >= 0.0), quote

        def teardown(self) -> None:
            if not hasattr(self, "engine"):
                return
            engine = self.engine
            left = sum(j.num_output_tokens - j.num_emitted for j in engine.jobs.values())
            engine.drain(max_steps=1500 + 2 * left)
            core = engine.core
            core.validate()
            assert not core.live.requests
            assert len(core.known.finishes) == 0
            assert engine.num_free == engine.num_blocks
            assert len(engine.finished) == self.count, "every request that came has left"
            assert not core.known.pace.in_flight

    examples = 60 if LONG else NUM_EXAMPLES.get(policy, 12)
    run_state_machine_as_test(
        Machine, settings=settings(ENOUGH, max_examples=examples, stateful_step_count=30)
    )


class LedgerMachine(RuleBasedStateMachine):
    """The ledger alone, beside a table of what it should hold."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = KvLedger()
        self.running: dict[str, Request] = {}
        self.step = 0
        self.count = 0

    @rule(prompt=st.integers(1, 500), output=outputs, slo=st.sampled_from(SLOS))
    def enter(self, prompt: int, output: int, slo: Slo) -> None:
        self.count += 1
        request = Request(f"r{self.count}", slo, 0.0, prompt, output)
        request.move(State.RUNNING, 0.0, "started")
        self.running[request.request_id] = request
        self.ledger.enter(request, self.step)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.running)))
        del self.running[name]
        self.ledger.leave(name)
        self.ledger.leave(name)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        request = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        if request.standing is Standing.PROMISED:
            request.standing = Standing.LOST
            self.ledger.enter(request, self.step)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), longer=st.integers(1, 50))
    def predict_again(self, data: st.DataObject, longer: int) -> None:
        request = self.running[data.draw(st.sampled_from(sorted(self.running)))]
        request.predicted_output_tokens += longer
        self.ledger.enter(request, self.step)

    @rule(steps=st.integers(1, 20))
    def decode(self, steps: int) -> None:
        self.step += steps

    @rule(prompt=st.integers(1, 500), output=outputs, slo=st.sampled_from(SLOS))
    def ask(self, prompt: int, output: int, slo: Slo) -> None:
        newcomer = Request("new", slo, 0.0, prompt, output)
        among_all, among_claims = (
            self.ledger.peak_with_tokens(newcomer, self.step, claims_only=only)
            for only in (False, True)
        )
        assert among_all >= among_claims >= prompt

    @invariant()
    def balances(self) -> None:
        self.ledger.validate(self.running)
        for request_id, request in self.running.items():
            assert (request_id in self.ledger.claims) is request.has_claim


def test_ledger() -> None:
    """Entering, leaving, losing and re-predicting in any order keeps the ledger balanced."""
    run_state_machine_as_test(LedgerMachine, settings=settings(ENOUGH, stateful_step_count=40))
