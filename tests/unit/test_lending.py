"""Lending: the pairwise rule, and each thing that can go wrong with a loan."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from drafts import draft_of

from headway.errors import InvariantError
from headway.kit.curve_gate import CurveGate
from headway.kit.ledger import KvLedger
from headway.kit.step_gate import AllOf
from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.c2_lending import Lending, LendingLedger
from headway.papers.cacheopt.critical import Critical
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo


def book_of(capacity: int = 1000, reserve: int = 0, buffer: int = 8) -> LendingBook:
    book = LendingBook(buffer)
    book.resize(capacity, reserve)
    return book


def owner(book: LendingBook, name: str = "owner", prompt: int = 100, output: int = 400) -> None:
    book.enter(name, prompt, 0, output)


@pytest.mark.parametrize(("buffer", "fits"), [(0, True), (189, True), (190, True), (191, False)])
def test_the_pairwise_rule(buffer: int, fits: bool) -> None:
    """500 reserved - (100 used + 50) - (110 + 50) leave 190: a loan if that is the buffer."""
    book = book_of(buffer=buffer)
    owner(book)
    assert (book.owner_for(110, 0, 50) == "owner") is fits


def test_the_owner_grows_meanwhile() -> None:
    """What fitted at step 0 no longer fits when the owner has used up the difference."""
    book = book_of(buffer=0)
    owner(book)
    assert book.owner_for(110, 190, 240) == "owner"
    assert book.owner_for(110, 191, 241) is None


def test_the_least_room_is_taken() -> None:
    """Of owners that can take the guest, the one with the least left does."""
    book = book_of(5000)
    for name, output in (("too tight", 147), ("tight", 300), ("roomy", 900)):
        owner(book, name, 100, output)
    book.enter("guest", 60, 0, 40)
    assert book["guest"].owner == "tight"
    assert book["tight"].lent_tokens == 100
    assert book.free_tokens == 5000 - 1000 - 400 - 247
    book.validate()


def test_two_guests_count_until_the_later_ends() -> None:
    """The owner's growth is charged to the end of its last guest."""
    book = book_of(600, buffer=0)
    owner(book)
    book.enter("long", 50, 0, 100)
    assert book["long"].owner == "owner"
    assert book["owner"].room == 250
    assert book.owner_for(149, 0, 1) == "owner"
    assert book.owner_for(150, 0, 1) is None, "149 + 1 fit until step 100, one more does not"


def test_a_guest_may_lend() -> None:
    """Nested lending: a guest's guest is charged to the guest alone."""
    book = book_of(1000)
    owner(book, output=800)
    book.enter("guest", 50, 0, 200)
    book.enter("nested", 20, 0, 30)
    assert (book["guest"].owner, book["nested"].owner) == ("owner", "guest")
    assert book["owner"].lent_tokens == 250
    book.validate()


def test_an_owner_that_ends_first_leaves_guests_what_they_occupy() -> None:
    """The guest becomes an owner; a guest's guest moves up to the owner's owner."""
    book = book_of(1000)
    owner(book, output=800)
    book.enter("guest", 50, 0, 200)
    book.enter("nested", 20, 0, 30)
    book.leave("guest")
    assert book["nested"].owner == "owner"
    assert book["owner"].lent_tokens == 50
    book.leave("owner")
    assert book["nested"].owner is None
    assert book.free_tokens == 1000 - 50
    book.validate()


def test_a_guest_that_outgrows_its_estimate_takes_more_of_its_owner() -> None:
    """While the owner has room nothing else changes."""
    book = book_of(500)
    owner(book)
    book.enter("guest", 50, 0, 50)
    book.move("guest", 95, 45, 75)
    assert book["guest"].owner == "owner"
    assert book["owner"].lent_tokens == 125
    assert list(book.in_the_way(100)) == []


def test_a_guest_that_outgrows_its_owner_moves_to_the_pool() -> None:
    """If the pool has room for it; nobody is in anybody's way then."""
    book = book_of(900)
    owner(book)
    book.enter("guest", 50, 0, 50)
    book.move("guest", 100, 50, 300)
    assert book["guest"].owner is None
    assert book.free_tokens == 900 - 500 - 350
    assert list(book.in_the_way(10**6)) == []


@pytest.mark.parametrize(("finish", "owner_of_it"), [(175, "owner"), (176, None)])
def test_a_guest_stays_while_it_ends_before_its_owner_needs_the_room(
    finish: int, owner_of_it: str | None
) -> None:
    """400 - (50 + 175) is the step the owner needs it from: 175 is in time, 176 is not."""
    book = book_of(5000)
    owner(book)
    book.enter("guest", 50, 0, 50)
    book.move("guest", 50, 0, finish)
    assert book["guest"].owner == owner_of_it


@pytest.mark.parametrize(("capacity", "fits"), [(499, False), (500, True)])
def test_a_reservation_may_fill_the_cache_to_the_last_token(capacity: int, fits: bool) -> None:
    """100 tokens held and 400 to come need 500."""
    assert book_of(capacity).has_room(100, 0, 400) is fits


def test_a_guest_that_overstays_is_the_first_victim() -> None:
    """Without room in the pool it stays, and is in the way once its owner needs the tokens."""
    book = book_of(500)
    owner(book)
    book.enter("guest", 50, 0, 50)
    book.enter("nested", 5, 0, 5)
    assert book["nested"].owner == "guest"
    book.move("guest", 100, 50, 300)
    assert book["guest"].owner == "owner"
    assert book["owner"].room == 50
    assert list(book.in_the_way(50)) == []
    assert list(book.in_the_way(51)) == ["nested", "guest"]


def test_an_owner_that_outgrows_its_estimate_overdraws_the_pool() -> None:
    """It lives on the reserve, then on hope; no reservation is given until somebody leaves."""
    book = book_of(600, reserve=80)
    owner(book)
    assert book.free_tokens == 20
    book.move("owner", 500, 400, 460)
    assert book.free_tokens == -40
    assert book.has_room(1, 400, 401), "a small guest still fits the owner"
    assert not book.has_room(60, 400, 401)
    book.leave("owner")
    assert book.free_tokens == 520


def test_leaving_twice_and_entering_twice() -> None:
    """A second departure is nothing; a second arrival is a mistake of ours."""
    book = book_of()
    owner(book)
    with pytest.raises(InvariantError, match="already"):
        owner(book)
    book.leave("owner")
    book.leave("owner")
    assert len(book) == 0
    assert "owner" not in book


def tampered() -> LendingBook:
    book = book_of()
    owner(book, output=600)
    book.enter("guest", 50, 0, 50)
    book.enter("nested", 5, 0, 5)
    book.validate()
    return book


def two_owners(book: LendingBook) -> None:
    book["nested"].owner = "owner"


def stranger(book: LendingBook) -> None:
    book["nested"].owner = "nobody"


def in_a_circle(book: LendingBook) -> None:
    book["owner"].owner = "nested"
    book["nested"].guests["owner"] = None
    book.reserved_tokens = 0


def lent_off(book: LendingBook) -> None:
    book["owner"].lent_tokens += 1


def horizon_off(book: LendingBook) -> None:
    book["owner"].horizon += 1


def reserved_off(book: LendingBook) -> None:
    book.reserved_tokens -= 1


def finish_off(book: LendingBook) -> None:
    book["nested"].finish += 1
    book["nested"].offset -= 1


@pytest.mark.parametrize(
    "tamper",
    [two_owners, stranger, in_a_circle, lent_off, horizon_off, reserved_off, finish_off],
)
def test_validate_notices(tamper: Callable[[LendingBook], None]) -> None:
    """Every figure that is kept is recomputed."""
    book = tampered()
    tamper(book)
    with pytest.raises(InvariantError):
        book.validate()


# -- the ledger and the gate -----------------------------------------------------------------


def request(name: str, prompt: int, output: int, slo: Slo = NO_PROMISE) -> Request:
    one = Request(name, slo, 0.0, prompt, output)
    one.predicted_output_tokens = output
    return one


def context(num_blocks: int = 50) -> Draft:
    view = EngineView(num_blocks, num_blocks, 16, 64, 512)
    return draft_of(LiveRequests(), view, max_step_s=0.1)


def runs(ledger: KvLedger, one: Request, step: int = 0) -> Request:
    one.move(State.RUNNING, 0.0, "started")
    ledger.enter(one, step)
    return one


def test_one_plan_counts_whom_it_admits() -> None:
    """Pencilled requests are in every book until the plan is made, guests of each other too."""
    ledger = LendingLedger(LendingBook())
    draft = context(num_blocks=40)
    gate = AllOf(Lending(ledger), CurveGate(ledger))
    big, small, other = (request(n, p, o) for n, p, o in
                         (("big", 100, 400), ("small", 50, 50), ("other", 100, 400)))  # fmt: skip
    assert gate.fits(draft, big)
    Lending(ledger).admitted(draft, big)
    assert Lending(ledger).fits(draft, small)
    Lending(ledger).admitted(draft, small)
    assert ledger.book["small"].owner == "big"
    assert not Lending(ledger).fits(draft, other)
    ledger.rub_out()
    assert len(ledger.book) == len(ledger.everyone) == 0
    ledger.validate({})


def test_the_curve_gate_measures_a_burst_against_the_residents_alone() -> None:
    """Whom it admitted in the same plan is in no book."""
    ledger = KvLedger()
    draft, gate = context(), CurveGate(ledger)
    runs(ledger, request("resident", 100, 100))
    for name in ("first", "second"):
        one = request(name, 200, 200)
        assert gate.fits(draft, one)
        gate.admitted(draft, one)
    assert len(ledger.everyone) == 1


def test_a_critical_request_starts_whatever_the_books_say() -> None:
    """It is booked in full, so the next one waits until the books balance."""
    ledger = LendingLedger(LendingBook())
    draft = context()
    runs(ledger, request("resident", 600, 100))
    urgent = request("urgent", 100, 100, Slo(ttft_s=0.2))
    urgent.due_at_s = 0.05
    assert not Lending(ledger).fits(draft, urgent)
    assert Lending(ledger, Critical()).fits(draft, urgent)
    ledger.pencil(urgent, 0)
    assert ledger.book.free_tokens < 0


def test_a_ledger_whose_books_disagree_is_noticed() -> None:
    """Curve and lending book hold the same residents, with the same lines."""
    ledger = LendingLedger(LendingBook())
    one = runs(ledger, request("r", 100, 100))
    ledger.validate({"r": one})
    ledger.book.move("r", 101, 0, 100)
    with pytest.raises(InvariantError, match="differently"):
        ledger.validate({"r": one})
    ledger.book.leave("r")
    with pytest.raises(InvariantError, match="lending book"):
        ledger.validate({"r": one})
