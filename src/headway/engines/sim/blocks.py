"""Paged KV memory: a count of free blocks, or, with prefix caching, the blocks themselves."""

from __future__ import annotations

from bisect import bisect
from collections import OrderedDict
from collections.abc import Collection, Container, Sequence
from typing import Any

from headway.engines.prefix import ABSENT, CACHED, HELD
from headway.engines.sim.job import Job, TokensKey
from headway.units import blocks_for


def num_cached_tokens(cached: Container[TokensKey], job: Job, block_size: int) -> int:
    """Return how many tokens *job* begins with whose blocks are *cached*; never all of them.

    A cache holds prefixes of chains, so a few look-ups do (as in :mod:`headway.engines.prefix`).
    """
    blocks = range(min(job.num_tokens - 1, job.num_chain) // block_size)
    ends = bisect(blocks, False, key=lambda i: job.tokens_key((i + 1) * block_size) not in cached)
    return block_size * ends


class BlockPool:
    """Blocks that are all alike: only their number matters."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_total = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks

    @property
    def cached(self) -> Collection[TokensKey]:
        """What the cached blocks are called."""
        return ()

    def find(self, job: Job) -> Sequence[Any]:
        """Return the cached blocks that begin *job*'s tokens; never all of them."""
        return ()

    def look_up(self, job: Job, index: int) -> int:
        """Return whether block *index* of *job*'s tokens is absent, cached, or held by a runner."""
        return ABSENT

    def name_of(self, job: Job, index: int) -> TokensKey | None:
        """Return what block *index* of *job*'s tokens is called, ``None`` if it is not full."""
        end = (index + 1) * self.block_size
        return job.tokens_key(end) if end <= job.num_tokens else None

    def admits(self, job: Job, hits: Sequence[Any]) -> bool:
        """Return whether all of *job*'s tokens fit, the blocks of *hits* being there already."""
        return blocks_for(job.num_tokens, self.block_size) <= self.num_free

    def adopt(self, job: Job, hits: Sequence[Any]) -> None:
        """Give *job* the blocks found for it."""

    def allocate(self, job: Job, num_tokens: int) -> bool:
        """Give *job* blocks for its first *num_tokens*, or nothing when they are too many."""
        needed = blocks_for(num_tokens, self.block_size) - job.num_blocks
        if needed > self.num_free:
            return False
        if needed > 0:
            self.num_free -= needed
            job.num_blocks += needed
        return True

    def note_full(self, job: Job, num_tokens: int) -> None:
        """Let others find the full blocks among *job*'s first *num_tokens*."""

    def release(self, job: Job) -> None:
        """Take every block of *job* back."""
        self.num_free += job.num_blocks
        job.num_blocks = 0


class Block:
    """One block: what its tokens are called, once it is full, and how many hold it."""

    __slots__ = ("key", "num_holders")

    def __init__(self) -> None:
        self.key: TokensKey | None = None
        self.num_holders = 1


class PrefixPool(BlockPool):
    """Blocks that are found again by what they hold, the least recently freed evicted first.

    A block is known by all tokens up to its end (:meth:`Job.tokens_key`): calls share the blocks
    of the chains they have in common; what follows, and every output, is a request's own. Two
    requests that compute the same block at once have one each, as in vLLM.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        super().__init__(num_blocks, block_size)
        self._by_key: dict[TokensKey, dict[Block, None]] = {}
        self._idle: OrderedDict[Block, None] = OrderedDict()

    @property
    def cached(self) -> Collection[TokensKey]:
        """See :class:`BlockPool`."""
        return self._by_key

    def find(self, job: Job) -> list[Block]:
        """Return the longest run of cached blocks; the last token is always computed."""
        hits: list[Block] = []
        for index in range((job.num_tokens - 1) // self.block_size):
            same = self._by_key.get(self._key(job, index))
            if not same:
                break
            hits.append(next(iter(same)))
        return hits

    def look_up(self, job: Job, index: int) -> int:
        """See :class:`BlockPool`."""
        same = self._by_key.get(self._key(job, index))
        if not same:
            return ABSENT
        return HELD if next(iter(same)).num_holders else CACHED

    def admits(self, job: Job, hits: Sequence[Block]) -> bool:
        """See :class:`BlockPool`; an idle block that is hit is no longer free."""
        needed = blocks_for(job.num_tokens, self.block_size) - len(hits)
        return needed + sum(block.num_holders == 0 for block in hits) <= self.num_free

    def adopt(self, job: Job, hits: Sequence[Block]) -> None:
        """See :class:`BlockPool`."""
        for block in hits:
            if block.num_holders == 0:
                del self._idle[block]
                self.num_free -= 1
            block.num_holders += 1
        job.table = list(hits)
        job.num_blocks = job.num_full_known = len(hits)

    def allocate(self, job: Job, num_tokens: int) -> bool:
        """See :class:`BlockPool`; blocks nobody can find go first."""
        needed = blocks_for(num_tokens, self.block_size) - job.num_blocks
        if needed > self.num_free:
            return False
        for _ in range(needed):
            if self.num_free == len(self._idle):
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
                block.num_holders = 1
            else:
                block = Block()
            self.num_free -= 1
            job.table.append(block)
        job.num_blocks = len(job.table)
        return True

    def note_full(self, job: Job, num_tokens: int) -> None:
        """See :class:`BlockPool`."""
        full = num_tokens // self.block_size
        for index in range(job.num_full_known, full):
            block = job.table[index]
            assert isinstance(block, Block)
            block.key = self._key(job, index)
            self._by_key.setdefault(block.key, {})[block] = None
        job.num_full_known = max(job.num_full_known, full)

    def release(self, job: Job) -> None:
        """See :class:`BlockPool`; the tail becomes idle first and so is evicted first."""
        for block in reversed(job.table):
            assert isinstance(block, Block)
            block.num_holders -= 1
            if block.num_holders == 0:
                self.num_free += 1
                if block.key is not None:
                    self._idle[block] = None
        job.table = []
        job.num_blocks = job.num_full_known = 0

    def _key(self, job: Job, index: int) -> TokensKey:
        return job.tokens_key((index + 1) * self.block_size)

    def _forget(self, block: Block) -> None:
        assert block.key is not None
        same = self._by_key[block.key]
        del same[block]
        if not same:
            del self._by_key[block.key]
        block.key = None
