"""Appointments for the refused: told in a row, known by kind, forgotten in time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.policy.appointments import (
    ABOUT_S,
    LEAD_S,
    MAX_RETRY_AFTER_S,
    SHARE,
    Appointments,
)
from headway.policy.events import Arrived
from headway.request import Request
from headway.slo import Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")


def request(prompt: int = 50, slo: Slo = CHAT) -> Request:
    return Request(f"r{prompt}", slo, 0.0, prompt, 100)


def arrival(at_s: float, prompt: int = 50, slo: Slo = CHAT, name: str = "again") -> Arrived:
    return Arrived(at_s, name, at_s, prompt, 100, slo)


def test_appointments_follow_each_other() -> None:
    """The first lies a lead ahead; each leaves most of the machine to others."""
    book = Appointments()
    assert book.book(request(), 0.5, 0.0, 100.0) == LEAD_S
    assert book.book(request(), 0.1, 0.0, 100.0) == pytest.approx(LEAD_S + 0.5 / SHARE)
    assert book.book(request(), 0.1, 0.0, 101.0) == pytest.approx(LEAD_S + 0.6 / SHARE - 1.0)


def test_no_appointment_lies_within_the_backlog() -> None:
    """Who waits now is served first."""
    assert Appointments().book(request(), 0.5, 45.0, 0.0) == 45.0


@pytest.mark.parametrize(
    ("after_s", "kept"),
    [
        (LEAD_S - ABOUT_S - 0.1, False),
        (LEAD_S - ABOUT_S, True),
        (LEAD_S + ABOUT_S, True),
        (LEAD_S + ABOUT_S + 0.1, False),
    ],
)
def test_an_appointment_is_kept_within_its_window(after_s: float, kept: bool) -> None:
    """Too early or too late, a request is a newcomer like any other."""
    book = Appointments()
    book.book(request(), 0.5, 0.0, 0.0)
    assert book.keeps(arrival(after_s)) is kept


@pytest.mark.parametrize("event", [arrival(LEAD_S, 51), arrival(LEAD_S, slo=Slo(ttft_s=2.0))])
def test_another_kind_of_request_is_not_expected(event: Arrived) -> None:
    """Prompt, bound on the output and promise tell who returns."""
    book = Appointments()
    book.book(request(), 0.5, 0.0, 0.0)
    assert not book.keeps(event)
    assert book.keeps(arrival(LEAD_S))


def test_an_appointment_is_kept_once() -> None:
    """Two of a kind need two appointments."""
    book = Appointments()
    book.book(request(), 0.1, 0.0, 0.0)
    assert book.keeps(arrival(LEAD_S))
    assert not book.keeps(arrival(LEAD_S))
    book.book(request(), 0.1, 0.0, LEAD_S)
    book.book(request(), 0.1, 0.0, LEAD_S)
    assert [book.keeps(arrival(2 * LEAD_S + 0.5)) for _ in range(3)] == [True, True, False]


def test_nobody_is_sent_away_for_longer_than_the_bound() -> None:
    """Beyond it there is no appointment, and a later refusal finds room again."""
    book = Appointments()
    waits_s = [book.book(request(i), 11.0, 0.0, 0.0) for i in range(100)]
    assert max(waits_s) == waits_s[-1] == MAX_RETRY_AFTER_S
    booked = sum(wait_s < MAX_RETRY_AFTER_S for wait_s in waits_s)
    assert len(book) == booked == 1 + int((MAX_RETRY_AFTER_S - LEAD_S) * SHARE / 11.0)
    assert not book.keeps(arrival(MAX_RETRY_AFTER_S, 99))
    assert book.book(request(), 0.1, 0.0, 60.0) < MAX_RETRY_AFTER_S


def test_the_book_is_bounded() -> None:
    """Appointments a step apart fill the time to the bound and no further."""
    book = Appointments()
    most = 1 + round((MAX_RETRY_AFTER_S - LEAD_S) * SHARE / 0.01)
    for _ in range(most + 10):
        last_s = book.book(request(), 0.01, 0.0, 0.0)
    assert len(book) == pytest.approx(most, abs=1)
    assert last_s == MAX_RETRY_AFTER_S


class SlowBook:
    """The obvious twin: a list of everything booked, searched from the start."""

    def __init__(self) -> None:
        self.booked: list[tuple[float, int]] = []
        self.free_at_s = 0.0

    def book(self, prompt: int, work_s: float, now_s: float) -> float:
        at_s = max(now_s + LEAD_S, self.free_at_s)
        if at_s - now_s > MAX_RETRY_AFTER_S:
            return MAX_RETRY_AFTER_S
        self.free_at_s = at_s + work_s / SHARE
        self.booked.append((at_s, prompt))
        return at_s - now_s

    def keeps(self, prompt: int, now_s: float) -> bool:
        for entry in self.booked:
            if entry[1] == prompt and entry[0] - ABOUT_S <= now_s <= entry[0] + ABOUT_S:
                self.booked.remove(entry)
                return True
        return False


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.5, 3.0, 31.0]),
            st.booleans(),
            st.integers(1, 3),
            st.sampled_from([0.01, 0.3, 25.0]),
        ),
        max_size=60,
    )
)
def test_as_a_slow_book(
    moves: list[tuple[float, bool, int, float]],
) -> None:
    """Whatever comes in whatever order, the book says what a searched list would say."""
    book, slow, now_s = Appointments(), SlowBook(), 0.0
    for wait_s, books, prompt, work_s in moves:
        now_s += wait_s
        if books:
            told_s = book.book(request(prompt), work_s, 0.0, now_s)
            assert told_s == slow.book(prompt, work_s, now_s)
        else:
            assert book.keeps(arrival(now_s, prompt)) is slow.keeps(prompt, now_s)


def refuse_all(last_try: float, count: int) -> float:
    """Return what is told to the one refused after *count* such refusals at once."""
    book, one = Appointments(), request()
    one.last_try = last_try
    for _ in range(count):
        book.book(one, 1.0, 0.0, 0.0)
    return book.book(request(), 1.0, 0.0, 0.0)


@pytest.mark.parametrize("servers", [2, 5])
def test_who_is_tried_elsewhere_takes_a_share_of_the_room(servers: int) -> None:
    """Twenty refusals, each tried at every server, take what twenty spread over them would."""
    assert refuse_all(1 / servers, 20) == pytest.approx(refuse_all(1.0, 20 // servers))
    assert refuse_all(0.0, 20) == LEAD_S


def test_who_may_still_be_served_elsewhere_is_not_expected() -> None:
    """It is told when there would be room, and a stranger of its kind finds no appointment."""
    book, one = Appointments(), request()
    one.last_try = 0.0
    assert book.book(one, 0.5, 0.0, 0.0) == LEAD_S
    assert len(book) == 0
    assert not book.keeps(arrival(LEAD_S))
