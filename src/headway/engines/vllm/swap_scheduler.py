"""The scheduler's side of swap: whose KV waits in host memory, and in which rows of it.

Host memory is a number of *slots*, each as large as one KV block. The scheduler assigns them; the
workers only copy, each its own shard, so any number of tensor parallel ranks stays in step. Pure
bookkeeping: nothing here knows vLLM or torch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from headway.errors import InvariantError


@dataclass(frozen=True, slots=True)
class Copy:
    """Blocks of one request and the host slots they are copied to, or from, pair by pair."""

    request_id: str
    block_ids: tuple[int, ...]
    slots: tuple[int, ...]


class HostSlots:
    """The bounded pool of host slots and the copies in it.

    A slot is free, holds a block of one request, or is being read by a copy the workers have not
    been told of yet (``take_copies`` tells them). The last kind is not given away before that:
    workers carry a step's copies to the host out first, and would overwrite what is still to be
    read.

    Args:
        num_slots: Blocks of host memory; 0 refuses every copy.
        block_size_tokens: Tokens of a block.
    """

    def __init__(self, num_slots: int, block_size_tokens: int) -> None:
        self.num_slots = num_slots
        self.block_size_tokens = block_size_tokens
        self._free = list(range(num_slots))  # A heap: low slots first keeps copies in long rows.
        self._read: list[int] = []
        self._stored: dict[str, tuple[int, ...]] = {}
        self._out: dict[str, Copy] = {}
        self._back: list[Copy] = []

    @property
    def num_free(self) -> int:
        """Slots a victim could take now."""
        return len(self._free)

    @property
    def num_requests(self) -> int:
        """Requests with a copy in host memory."""
        return len(self._stored)

    def tokens(self, request_id: str) -> int:
        """Return how many tokens of a request, from its first, are in host memory."""
        return len(self._stored.get(request_id, ())) * self.block_size_tokens

    def try_store(self, request_id: str, block_ids: Sequence[int], num_tokens: int) -> bool:
        """Plan the copy of a victim's whole blocks; return whether there was anything, and room.

        Args:
            block_ids: The request's KV blocks, in order.
            num_tokens: Tokens whose KV is computed; those beyond the last whole block are left.
        """
        num_blocks = num_tokens // self.block_size_tokens
        if not 0 < num_blocks <= len(self._free):
            return False
        if request_id in self._stored:
            raise InvariantError(f"{request_id} is preempted, but a copy of it is kept already")
        slots = tuple(heapq.heappop(self._free) for _ in range(num_blocks))
        self._stored[request_id] = slots
        self._out[request_id] = Copy(request_id, tuple(block_ids[:num_blocks]), slots)
        return True

    def load(self, request_id: str, block_ids: Sequence[int], num_cached_tokens: int) -> None:
        """Plan the copy back into the request's new blocks; its slots come free.

        Args:
            block_ids: The blocks the request holds now, in order.
            num_cached_tokens: Tokens the prefix cache gave it; their blocks are not copied.
        """
        slots = self._stored.pop(request_id)
        first = num_cached_tokens // self.block_size_tokens
        copied = tuple(block_ids[first : len(slots)])
        self._back.append(Copy(request_id, copied, slots[first:]))
        self._read.extend(slots)

    def drop(self, request_id: str) -> None:
        """Forget the copy of a request, if there is one: it ended, or needs it no more."""
        self._out.pop(request_id, None)
        for slot in self._stored.pop(request_id, ()):
            heapq.heappush(self._free, slot)

    def clear(self) -> None:
        """Forget every copy that waits."""
        for request_id in list(self._stored):
            self.drop(request_id)

    def take_copies(self) -> tuple[tuple[Copy, ...], tuple[Copy, ...]]:
        """Return the copies to the host, then those back, planned since the last call."""
        out, back = tuple(self._out.values()), tuple(self._back)
        self._out, self._back = {}, []
        for slot in self._read:
            heapq.heappush(self._free, slot)
        self._read = []
        return out, back

    def validate(self) -> None:
        """Recompute the books.

        Raises:
            InvariantError: A slot is in no place or in two, or a planned copy has no slots.
        """
        held = [slot for slots in self._stored.values() for slot in slots]
        if sorted((*self._free, *self._read, *held)) != list(range(self.num_slots)):
            raise InvariantError(f"host slots are lost or doubled: {self.num_slots} exist")
        for copy in (*self._out.values(), *self._back):
            if len(copy.block_ids) != len(copy.slots):
                raise InvariantError(f"blocks and slots do not pair: {copy}")
        given_away = {slot for copy in self._out.values() for slot in copy.slots} & set(self._free)
        if given_away:
            raise InvariantError(f"copies are planned to host slots that are free: {given_away}")
