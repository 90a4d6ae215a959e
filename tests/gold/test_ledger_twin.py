"""The lending book and what admission promises, beside slow and obvious twins."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from random import Random

import pytest
from drafts import draft_of
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from headway.kit.curve_gate import CurveGate
from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.c2_lending import Lending, LendingLedger
from headway.policy.admit import Gate
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.recent import LongestRecent
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE

LONG = os.environ.get("HEADWAY_LONG") == "1"
NUM_OPERATIONS = 1_000_000 if LONG else 100_000
BUFFER = 8


@dataclass
class One:
    """A resident in plain words: what it holds now, and how many tokens are still to come."""

    used: int
    left: int
    owner: str | None = None

    @property
    def reserved(self) -> int:
        return self.used + self.left


@dataclass
class Plain:
    """A lending book that keeps no sums and no index, and steps token by token."""

    capacity: int = 0
    reserve: int = 0
    all: dict[str, One] = field(default_factory=dict)

    def guests(self, key: str) -> list[str]:
        return [name for name, one in self.all.items() if one.owner == key]

    def lent(self, key: str) -> int:
        return sum(self.all[name].reserved for name in self.guests(key))

    def free(self) -> int:
        owned = sum(one.reserved for one in self.all.values() if one.owner is None)
        return self.capacity - self.reserve - owned

    def fits_in(self, key: str, used: int, left: int) -> bool:
        """Walk from now to the end of the last guest; the owner and its loans must fit."""
        owner = self.all[key]
        last = max([left, *(self.all[name].left for name in self.guests(key))])
        for token in range(last + 1):
            if owner.used + token + self.lent(key) + used + left + BUFFER > owner.reserved:
                return False
        return True

    def owner_for(self, used: int, left: int) -> str | None:
        fitting = [key for key in self.all if self.fits_in(key, used, left)]
        return min(fitting, key=lambda key: (self.room(key), key), default=None)

    def room(self, key: str) -> int:
        return self.all[key].left - self.lent(key)

    def enter(self, key: str, used: int, left: int) -> None:
        self.all[key] = One(used, left, self.owner_for(used, left))

    def move(self, key: str, used: int, left: int) -> None:
        one = self.all[key]
        one.used, one.left = used, left
        if one.owner is None:
            return
        last = max(self.all[name].left for name in self.guests(one.owner))
        if last > self.room(one.owner) and one.reserved <= self.free():
            one.owner = None

    def leave(self, key: str) -> None:
        gone = self.all[key]
        for name in self.guests(key):
            self.all[name].owner = gone.owner
        del self.all[key]

    def in_the_way(self, ahead: int) -> set[str]:
        """Return guests, with their own, of whoever outgrows what it kept within *ahead*."""
        names: set[str] = set()
        todo = [g for key in self.all if self.room(key) < ahead for g in self.guests(key)]
        while todo:
            names.add(todo[-1])
            todo.extend(self.guests(todo.pop()))
        return names

    def tick(self) -> None:
        for one in self.all.values():
            one.used += 1
            one.left -= 1


class Pair:
    """The book and its twin, told the same."""

    def __init__(self) -> None:
        self.book, self.plain, self.step = LendingBook(BUFFER), Plain(), 0
        self.count = 0
        self.resize(4000, 100)

    def resize(self, capacity: int, reserve: int) -> None:
        self.book.resize(capacity, reserve)
        self.plain.capacity, self.plain.reserve = capacity, reserve

    def enter(self, used: int, left: int) -> None:
        self.count += 1
        self.book.enter(f"r{self.count}", used, self.step, self.step + left)
        self.plain.enter(f"r{self.count}", used, left)

    def move(self, key: str, used: int, left: int) -> None:
        self.book.move(key, used, self.step, self.step + left)
        self.plain.move(key, used, left)

    def leave(self, key: str) -> None:
        self.book.leave(key)
        self.plain.leave(key)

    def tick(self) -> None:
        self.step += 1
        self.plain.tick()

    def ask(self, used: int, left: int) -> None:
        expected = self.plain.owner_for(used, left)
        assert self.book.owner_for(used, self.step, self.step + left) == expected
        fits = expected is not None or used + left <= self.plain.free()
        assert self.book.has_room(used, self.step, self.step + left) is fits

    def agree(self) -> None:
        self.book.validate()
        book, plain = self.book, self.plain
        assert len(book) == len(plain.all)
        for key, one in plain.all.items():
            assert book[key].owner == one.owner
            assert book[key].lent_tokens == plain.lent(key)
        assert book.free_tokens == plain.free()

    def agree_on_victims(self, ahead: int) -> None:
        victims = list(self.book.in_the_way(self.step + ahead))
        assert set(victims) == self.plain.in_the_way(ahead)
        assert len(victims) == len(set(victims))
        for index, name in enumerate(victims):
            assert not set(self.plain.guests(name)) & set(victims[index:]), "guests go first"


def test_a_long_run_of_random_operations() -> None:
    """The book balances after each of 100,000 operations (10^6 with HEADWAY_LONG=1).

    After every sixteenth it is compared with the twin, which is told nothing but operations.
    """
    rng, pair, seen = Random(20), Pair(), {"guest": 0, "nested": 0, "in the way": 0, "overdrawn": 0}
    for number in range(NUM_OPERATIONS):
        names = list(pair.plain.all)
        chance = rng.random()
        if (chance < 0.35 and len(names) < 6) or not names:
            pair.enter(rng.randint(1, 200), rng.choice((3, 20, 150, 700)))
        elif chance < 0.55:
            pair.leave(rng.choice(names))
        elif chance < 0.70:
            one = pair.plain.all[key := rng.choice(names)]
            pair.move(key, one.used + rng.randint(-3, 0), max(one.left, 0) + rng.randint(1, 90))
        elif chance < 0.98:
            pair.tick()
            continue  # Passing time changes nothing the book has stored.
        else:
            pair.resize(rng.randint(500, 6000), rng.randint(0, 300))
        pair.book.validate()
        if number % 16 == 0:
            pair.agree()
            pair.ask(rng.randint(1, 200), rng.choice((1, 5, 50, 300)))
            pair.agree_on_victims(rng.randint(0, 30))
            owners = {one.owner for one in pair.plain.all.values()} - {None}
            seen["guest"] += bool(owners)
            seen["nested"] += any(pair.plain.all[key].owner for key in owners if key)
            seen["in the way"] += bool(pair.plain.in_the_way(2))
            seen["overdrawn"] += pair.plain.free() < 0
    assert min(seen.values()) > NUM_OPERATIONS // 5000, f"the run hardly saw some of {seen}"


class BookMachine(RuleBasedStateMachine):
    """The same by hypothesis, which looks for the short unlucky sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    @rule(used=st.integers(0, 60), left=st.integers(1, 400))
    def enter(self, used: int, left: int) -> None:
        self.pair.enter(used, left)
        self.pair.agree()

    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        if self.pair.plain.all:
            self.pair.leave(data.draw(st.sampled_from(sorted(self.pair.plain.all))))
            self.pair.agree()

    @rule(data=st.data(), used=st.integers(0, 500), left=st.integers(1, 400))
    def move(self, data: st.DataObject, used: int, left: int) -> None:
        if self.pair.plain.all:
            self.pair.move(data.draw(st.sampled_from(sorted(self.pair.plain.all))), used, left)
            self.pair.agree()

    @rule(steps=st.integers(1, 50), ahead=st.integers(0, 60))
    def pass_time(self, steps: int, ahead: int) -> None:
        for _ in range(steps):
            self.pair.tick()
        self.pair.agree_on_victims(ahead)

    @rule(capacity=st.integers(100, 3000), used=st.integers(0, 300), left=st.integers(1, 300))
    def ask(self, capacity: int, used: int, left: int) -> None:
        self.pair.resize(capacity, capacity // 10)
        self.pair.ask(used, left)
        self.pair.agree()


def test_short_unlucky_sequences() -> None:
    """Whatever hypothesis thinks of, book and twin agree."""
    run_state_machine_as_test(
        BookMachine, settings=settings(max_examples=80, stateful_step_count=40)
    )


# -- what admission promises -----------------------------------------------------------------


class Cache:
    """A cache whose requests do what was predicted: usage is walked token by token."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.step = self.count = 0
        self.running: dict[str, tuple[Request, int]] = {}
        self.ledger = LendingLedger(LendingBook(0))
        self.ledger.resize(capacity, 0)

    def newcomer(self, rng: Random) -> Request:
        self.count += 1
        output = rng.choice((2, 10, 60, 300))
        request = Request(f"r{self.count}", NO_PROMISE, 0.0, rng.randint(1, 120), output)
        request.predicted_output_tokens = output
        return request

    def context(self) -> Draft:
        num_blocks = self.capacity // 16
        view = EngineView(num_blocks, num_blocks, 16, 64, 512)
        return draft_of(LiveRequests(), view, step=self.step)

    def start(self, request: Request) -> None:
        self.running[request.request_id] = (request, self.step)
        request.move(State.RUNNING, 0.0, "started")
        self.ledger.enter(request, self.step)

    def walk(self) -> int:
        """Let one step pass; return the tokens held in it."""
        self.step += 1
        held = 0
        for name, (request, since) in list(self.running.items()):
            if self.step - since > request.predicted_output_tokens:
                del self.running[name]
                self.ledger.leave(name)
            else:
                held += request.num_prompt_tokens + self.step - since
        return held


@pytest.mark.parametrize("rule", ["lending", "curve"])
def test_right_predictions_never_overflow(rule: str) -> None:
    """When every length is as predicted, no step holds more than the cache, by either rule."""
    rng, cache = Random(5), Cache(63 * 16)
    gate: Gate = CurveGate(cache.ledger, reserve_share=0.0)
    if rule == "lending":
        gate = Lending(cache.ledger)
    peak = num_admitted = 0
    for _ in range(3000):
        if rng.random() < 0.5:
            request = cache.newcomer(rng)
            if gate.fits(cache.context(), request):
                num_admitted += 1
                cache.start(request)
        held = cache.walk()
        peak = max(peak, held)
        assert held <= cache.capacity
        cache.ledger.book.validate()
    assert peak > 0.9 * cache.capacity
    assert num_admitted > 100


@given(st.lists(st.floats(0.0, 9.0), max_size=60), st.integers(1, 12))
def test_the_longest_recent_step_is_the_largest_of_a_window(
    values: list[float], window: int
) -> None:
    """It equals the maximum of the last values, looked up afresh each time."""
    recent = LongestRecent(window)
    assert recent.largest(0.5) == 0.5
    for index, value in enumerate(values):
        recent.add(value)
        assert recent.largest(0.5) == max(values[max(index + 1 - window, 0) : index + 1])
