"""Lending: a guest runs in room that an owner has reserved but will not need until later.

CacheOPT (arXiv 2503.13773 §3.2, as third parties cite it): guest i may run in owner j when
``a_j - (u_j + s_i^out) - (s_i^prompt + s_i^out) >= b``. When the guest ends, s_i^out steps from
now, the owner has grown by as much, and both fit what the owner reserved. The owner with the
least left is taken.

Everything is kept in absolute steps, as in the usage curve: a resident holds ``offset + step``
tokens until its ``finish`` and reserved what it holds then. In these words the rule reads
``finish_j - lent_j - latest finish of a guest - a_i >= b``, and passing time changes nothing
stored. Differs: with several guests in one owner its growth counts until the last of them ends.

The rules when predictions are wrong:

- an owner that ends first leaves each guest what the guest occupies: guests of a guest move up
  to its owner, guests of an owner become owners;
- a guest that outgrows its estimate takes more of its owner, moves to the pool when the owner
  has no room, and otherwise overstays: from the moment the owner grows into what it lent, its
  guests are the first victims;
- an owner that outgrows its estimate takes from the pool, which may go below zero: down to minus
  the reserve it lives on the reserve, and only guests are admitted until somebody leaves;
- a guest may lend in turn; whoever is aborted or preempted leaves by the first rule.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sortedcontainers import SortedList

from headway.errors import InvariantError

NEVER = -(2**62)
"""The latest finish among no guests."""


@dataclass(slots=True)
class Resident:
    """One running request in the books. Sizes in tokens, times in absolute steps.

    Attributes:
        offset: It holds ``offset + step`` tokens at ``step``.
        finish: The step of its last predicted token.
        owner: In whose reservation it runs; ``None`` for one of its own.
        lent_tokens: What its guests have reserved of its own reservation.
        horizon: The latest finish of a guest; :data:`NEVER` without one.
    """

    offset: int
    finish: int
    owner: str | None = None
    guests: dict[str, None] = field(default_factory=dict)
    lent_tokens: int = 0
    horizon: int = NEVER

    @property
    def reserved_tokens(self) -> int:
        """What it holds when it finishes."""
        return self.offset + self.finish

    @property
    def room(self) -> int:
        """The step from which it grows into what it lent."""
        return self.finish - self.lent_tokens


class LendingBook:
    """Who reserved how much, and who runs in whose reservation.

    Args:
        buffer_tokens: What a loan must leave of the owner's reservation. It covers partly
            filled blocks, which the rule, counted in tokens, does not see.
    """

    def __init__(self, buffer_tokens: int = 8) -> None:
        self.buffer_tokens = buffer_tokens
        self.capacity_tokens = 0
        self.reserve_tokens = 0
        self.reserved_tokens = 0
        """By everybody who is nobody's guest."""
        self._residents: dict[str, Resident] = {}
        self._by_room: SortedList = SortedList()

    def __len__(self) -> int:
        return len(self._residents)

    def __contains__(self, key: object) -> bool:
        return key in self._residents

    def __getitem__(self, key: str) -> Resident:
        return self._residents[key]

    @property
    def free_tokens(self) -> int:
        """Neither reserved by an owner nor set aside; below zero the books are overdrawn."""
        return self.capacity_tokens - self.reserve_tokens - self.reserved_tokens

    def resize(self, capacity_tokens: int, reserve_tokens: int) -> None:
        """Say what the cache holds, and how much of it is set aside for everyone."""
        self.capacity_tokens, self.reserve_tokens = capacity_tokens, reserve_tokens

    def owner_for(self, held_tokens: int, step: int, finish: int) -> str | None:
        """Return the owner with the least room left that can take a guest, or ``None``."""
        tokens = held_tokens - step + finish
        least = self.buffer_tokens + tokens + finish
        for room, key in self._by_room.irange((least,)):
            if room - tokens - max(self._residents[key].horizon, finish) >= self.buffer_tokens:
                return str(key)
        return None

    def has_room(self, held_tokens: int, step: int, finish: int) -> bool:
        """Return whether a newcomer fits: as a guest, or with a reservation of its own."""
        if held_tokens - step + finish <= self.free_tokens:
            return True
        return self.owner_for(held_tokens, step, finish) is not None

    def enter(self, key: str, held_tokens: int, step: int, finish: int) -> None:
        """Book a newcomer, as a guest when an owner can take it.

        Raises:
            InvariantError: It is booked already.
        """
        if key in self._residents:
            raise InvariantError(f"{key} is in the lending book already")
        owner = self.owner_for(held_tokens, step, finish)
        self._residents[key] = resident = Resident(held_tokens - step, finish)
        self._by_room.add((resident.room, key))
        self._attach(key, resident, owner)

    def move(self, key: str, held_tokens: int, step: int, finish: int) -> None:
        """Correct what a resident holds and when it should finish."""
        resident = self._residents[key]
        owner = resident.owner
        self._detach(key, resident)
        self._by_room.remove((resident.room, key))
        resident.offset, resident.finish = held_tokens - step, finish
        self._by_room.add((resident.room, key))
        self._attach(key, resident, owner)
        if owner is None:
            return
        lender = self._residents[owner]
        outgrown = lender.room < lender.horizon
        if outgrown and resident.reserved_tokens <= self.free_tokens:
            self._detach(key, resident)
            self._attach(key, resident, None)

    def leave(self, key: str) -> None:
        """Strike a resident off if it is there; its guests keep what they occupy."""
        resident = self._residents.get(key)
        if resident is None:
            return
        owner = resident.owner
        for name in list(resident.guests):
            guest = self._residents[name]
            self._detach(name, guest)
            self._attach(name, guest, owner)
        self._detach(key, resident)
        self._by_room.remove((resident.room, key))
        del self._residents[key]

    def in_the_way(self, step: int) -> Iterator[str]:
        """Yield guests whose owner has grown into what it lent them by *step*.

        The guest that would stay longest comes first; a guest's own guests come before it,
        because they run in its room.
        """
        seen: set[str] = set()
        for room, key in list(self._by_room):
            if room >= step:
                return
            for guest in self._latest_first(key):
                yield from (name for name in self._with_guests(guest) if name not in seen)
                seen.update(self._with_guests(guest))

    def _latest_first(self, key: str) -> list[str]:
        guests = self._residents[key].guests
        return sorted(guests, key=lambda name: (-self._residents[name].finish, name))

    def _with_guests(self, key: str) -> Iterator[str]:
        for guest in self._latest_first(key):
            yield from self._with_guests(guest)
        yield key

    def _attach(self, key: str, resident: Resident, owner: str | None) -> None:
        """Charge a reservation to its owner, or to the pool."""
        resident.owner = owner
        if owner is None:
            self.reserved_tokens += resident.reserved_tokens
            return
        lender = self._residents[owner]
        lender.guests[key] = None
        lender.horizon = max(lender.horizon, resident.finish)
        self._lend(owner, lender, resident.reserved_tokens)

    def _detach(self, key: str, resident: Resident) -> None:
        """Take a reservation off the books of whoever it is charged to."""
        if resident.owner is None:
            self.reserved_tokens -= resident.reserved_tokens
            return
        lender = self._residents[resident.owner]
        del lender.guests[key]
        if lender.horizon == resident.finish:
            finishes = (self._residents[name].finish for name in lender.guests)
            lender.horizon = max(finishes, default=NEVER)
        self._lend(resident.owner, lender, -resident.reserved_tokens)
        resident.owner = None

    def _lend(self, key: str, lender: Resident, num_tokens: int) -> None:
        self._by_room.remove((lender.room, key))
        lender.lent_tokens += num_tokens
        self._by_room.add((lender.room, key))

    def validate(self) -> None:
        """Recompute every derived figure.

        Raises:
            InvariantError: A sum, a horizon or the index is off, a guest and its owner do not
                know each other, or somebody runs in its own reservation.
        """
        reserved = sum(r.reserved_tokens for r in self._residents.values() if r.owner is None)
        if reserved != self.reserved_tokens:
            raise InvariantError(f"{reserved} tokens are reserved, booked {self.reserved_tokens}")
        guests: dict[str, list[str]] = {key: [] for key in self._residents}
        for key, resident in self._residents.items():
            if resident.owner is not None:
                if resident.owner not in guests:
                    raise InvariantError(f"the owner of {key} is not in the books")
                guests[resident.owner].append(key)
            self._check_lineage(key)
        for key, resident in self._residents.items():
            theirs = [self._residents[name] for name in guests[key]]
            if set(guests[key]) != set(resident.guests):
                raise InvariantError(f"{key} has guests {guests[key]}, booked {resident.guests}")
            if resident.lent_tokens != sum(g.reserved_tokens for g in theirs):
                raise InvariantError(f"{key} lent {resident.lent_tokens} tokens by its own books")
            if resident.horizon != max((g.finish for g in theirs), default=NEVER):
                raise InvariantError(f"the last guest of {key} ends at another step than booked")
        index = sorted((r.room, key) for key, r in self._residents.items())
        if index != list(self._by_room):
            raise InvariantError("the index of rooms does not match the residents")

    def _check_lineage(self, key: str) -> None:
        above = self._residents[key].owner
        for _ in range(len(self._residents)):
            if above is None:
                return
            above = self._residents[above].owner
        raise InvariantError(f"{key} runs, through others, in its own reservation")
