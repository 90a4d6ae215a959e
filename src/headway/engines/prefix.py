"""What a waiting request will find in the prefix cache, kept by two cursors a request.

The engine is asked block by block, through one look-up that each engine brings. *Found* are the
cached blocks from the start of the tokens, *held* those of them that a running request holds: they
cost no free block. Both are prefixes of the chain of blocks (blocks are freed from the tail, and
evicted in the order they were freed), so a cursor that was right before moves by a look-up or two.
The slow twin, a walk over every block, is in ``tests/gold/test_prefixes.py``.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Hashable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from headway.policy.events import PrefixFound
from headway.policy.live_requests import LiveRequests
from headway.request import Request

CLAIMS_LOOKED_AT, OTHERS_LOOKED_AT = 32, 16
"""Waiting requests whose cursors move before every plan: more than a step can start.

Of each kind at least the eight that others may pass for want of KV, and those that pass them.
"""

IN_TURN = 16
"""Further ones of each kind looked at before a plan, in turn: all are known after a while."""

ASK_EVERY = 8
"""Plans between two looks at all of one request. A walk over a prompt of 60,000 tokens takes a
millisecond; one in turn before each plan is what it may cost."""

ABSENT, CACHED, HELD = 0, 1, 2

LookUp = Callable[[Any, int], int]
"""``(engine's request, index of a block) -> ABSENT, CACHED or HELD``."""

Naming = Callable[[Any, int], Hashable | None]
"""``(engine's request, index of a block) -> what its tokens are called, with all before them``."""


class WholeHit(NamedTuple):
    """What the engine says of all of a request at once.

    Attributes:
        num_found_tokens: Cached.
        num_held_tokens: Of them, held by running requests.
        is_still_held: Tells, for the price of a look at one block, whether they still are.
    """

    num_found_tokens: int
    num_held_tokens: int
    is_still_held: Callable[[], bool] = lambda: True


Whole = Callable[[Any], WholeHit]
"""``(engine's request) -> what it would find``."""

Elsewhere = Callable[[Any, int], int]
"""``(engine's request, tokens found here) -> tokens found here or elsewhere``."""


class Prefixes:
    """Cursors of the waiting requests, in blocks, and what the core was told of them.

    Args:
        block_size: Tokens a block holds.
        look_up: Asks the engine; ``None`` where nothing is cached, or no block can tell alone.
        name_of: Names a block of a request; ``None`` for one that is not full yet.
        whole: Asks the engine about all of a request at once: seldom, one a plan.
        elsewhere: Tells of tokens that can be loaded from outside the engine.
    """

    def __init__(
        self,
        block_size: int,
        look_up: LookUp | None,
        name_of: Naming,
        whole: Whole | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> None:
        self._block_size = block_size
        self._look_up = look_up
        self._name_of = name_of
        self._whole = whole
        self._elsewhere = elsewhere
        self._known: dict[str, tuple[int, int]] = {}
        self._turns = [0, 0]  # Of claims, of others.
        self._plan = 0
        self._hits: dict[str, tuple[int, WholeHit]] = {}
        self._may_ask = True

    def find(self, name: str, request: Any, num_tokens: int) -> tuple[int, int]:
        """Move the cursors of a request; return tokens found and held.

        The last token is always computed, so never all *num_tokens* are found.
        """
        found, held = self._find_here(name, request, num_tokens)
        if self._elsewhere is not None:
            found = self._elsewhere(request, found)
        return found, held

    def _find_here(self, name: str, request: Any, num_tokens: int) -> tuple[int, int]:
        look_up = self._look_up
        if look_up is None:
            return self._find_whole(name, request)
        found, held = self._known.get(name, (0, 0))
        most = (num_tokens - 1) // self._block_size
        found = min(found, most)
        last = ABSENT
        while found and not (last := look_up(request, found - 1)):
            found -= 1
        while found < most and (further := look_up(request, found)):
            found, last = found + 1, further
        if last == HELD:  # And so are all before it.
            held = found
        else:
            held = min(held, max(found - 1, 0))
            while held and look_up(request, held - 1) != HELD:
                held -= 1
            while held < found - 1 and look_up(request, held) == HELD:
                held += 1
        self._known[name] = (found, held)
        return found * self._block_size, held * self._block_size

    def _find_whole(self, name: str, request: Any) -> tuple[int, int]:
        """Ask about a request that is new, or was last asked about long enough ago.

        And at once about one whose prefix nobody holds any more: it takes free blocks now.
        """
        whole = self._whole
        if whole is None:
            return 0, 0
        asked, hit = self._hits.get(name, (0, None))
        is_new = hit is None or not hit.is_still_held()
        is_due = self._may_ask and self._plan - asked >= ASK_EVERY
        if hit is None or is_new or is_due:
            self._may_ask = self._may_ask and is_new
            hit = whole(request)
            self._hits[name] = self._plan, hit
        return hit.num_found_tokens, hit.num_held_tokens

    def forget(self, name: str) -> None:
        """A request ended."""
        for known in (self._known, self._hits):
            known.pop(name, None)

    def news(self, at_s: float, live: LiveRequests, requests: Any) -> PrefixFound | None:
        """Return what changed for the requests that wait, ``None`` when nothing did.

        Args:
            live: The core's table: who waits, and what it was told.
            requests: The engine's requests by id.
        """
        if self._look_up is None and self._whole is None and self._elsewhere is None:
            return None
        self._plan += 1
        self._may_ask = True
        tokens: dict[str, tuple[int, int]] = {}
        coming: dict[str, tuple[str, int]] = {}
        next_blocks = self._next_blocks(live, requests) if self._look_up is not None else {}
        for request in self._looked_at(live):
            name = request.request_id
            theirs = requests.get(name)
            if theirs is None or request.num_computed_tokens:  # It has KV of its own already.
                continue
            num_tokens = request.prefill_target_tokens
            now = self.find(name, theirs, num_tokens)
            if now != (request.num_found_tokens, request.num_held_tokens):
                tokens[name] = now
            if next_blocks and now[0] + self._block_size < num_tokens:
                other = next_blocks.get(self._name_of(theirs, now[0] // self._block_size))
                if other is not None and other != request.computed_by:
                    coming[name] = other, self._num_common(theirs, requests[other])
        return PrefixFound(at_s, tokens, coming) if tokens or coming else None

    def _next_blocks(self, live: LiveRequests, requests: Any) -> dict[Hashable, str]:
        """Return who computes which block next, of the prompts in progress."""
        computed: dict[Hashable, str] = {}
        for name, request in live.prefilling.items():
            theirs = requests.get(name)
            block = request.num_computed_tokens // self._block_size
            if theirs is not None and (key := self._name_of(theirs, block)) is not None:
                computed.setdefault(key, name)
        return computed

    def _num_common(self, one: Any, other: Any) -> int:
        """Return how many tokens *one* need not compute when *other*'s are all cached.

        A block is called by all tokens up to its end: after the first that differs all do.
        """
        name_of, size = self._name_of, self._block_size
        blocks = range(min(one.num_tokens - 1, other.num_tokens) // size)
        return size * bisect(blocks, False, key=lambda i: name_of(one, i) != name_of(other, i))

    def _looked_at(self, live: LiveRequests) -> Iterator[Request]:
        queues = (live.claims, CLAIMS_LOOKED_AT), (live.others, OTHERS_LOOKED_AT)
        for i, (queue, num_first) in enumerate(queues):
            yield from islice(queue, num_first)
            if len(queue) > num_first:
                turn = max(self._turns[i], num_first)
                if turn >= len(queue):
                    turn = num_first
                yield from queue.islice(turn, turn + IN_TURN)
                self._turns[i] = turn + IN_TURN
