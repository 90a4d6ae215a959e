"""How many KV blocks so many tokens take, for a model with one kind of attention or several.

A model's layers form groups that share one pool of blocks. A group of full attention keeps a block
for every so many tokens; one with a sliding window, chunked-local attention or a recurrent state
keeps a bounded number, and a few more while a prompt is computed. The engine says both bounds
(:class:`KvGroup`); nothing of a model is known here.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from headway.units import blocks_for

MANY_BLOCKS = 1 << 40
"""What a group without a bound may keep."""


class KvGroup(NamedTuple):
    """One group's share of a request, in blocks. A bound of 0 is none.

    Attributes:
        block_size_tokens: Tokens a block holds.
        most_blocks: The most a request has while its prompt is computed.
        kept_blocks: The most it keeps once it decodes.
    """

    block_size_tokens: int
    most_blocks: int = 0
    kept_blocks: int = 0

    @property
    def grows(self) -> bool:
        """Whether every further token takes more room."""
        return not self.kept_blocks

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks to start a prompt of so many tokens."""
        return min(blocks_for(num_tokens, self.block_size_tokens), self.most_blocks or MANY_BLOCKS)

    def kept(self, num_tokens: int) -> int:
        """Return the blocks that a request of so many tokens keeps."""
        return min(blocks_for(num_tokens, self.block_size_tokens), self.kept_blocks or MANY_BLOCKS)


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The groups of a model, counted together.

    Whatever adds up the future of many requests counts in tokens that grow by one a step; what
    the bounded groups keep of a request counts there as :meth:`aside_tokens`, once.

    Args:
        block_size_tokens: Tokens a block holds, in the engine's own steps of scheduling.
        groups: Empty for the plain case, one group that keeps every token.
    """

    block_size_tokens: int
    groups: tuple[KvGroup, ...] = ()

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks that a prompt of *num_tokens* needs to start."""
        if not self.groups:
            return blocks_for(num_tokens, self.block_size_tokens)
        return sum(group.blocks(num_tokens) for group in self.groups)

    def kept_blocks(self, num_tokens: int) -> int:
        """Return the blocks that a request with *num_tokens* of KV gives back if it leaves."""
        if not self.groups:
            return blocks_for(num_tokens, self.block_size_tokens)
        return sum(group.kept(num_tokens) for group in self.groups)

    def growth(self, num_tokens: int) -> int:
        """Return the blocks that the token after *num_tokens* takes."""
        if not self.groups:
            return int(num_tokens % self.block_size_tokens == 0)
        return self.kept_blocks(num_tokens + 1) - self.kept_blocks(num_tokens)

    def whole_blocks(self, num_tokens: int) -> int:
        """Return the blocks that *num_tokens* fill in the groups that keep every token."""
        if not self.groups:
            return num_tokens // self.block_size_tokens
        return sum(num_tokens // g.block_size_tokens for g in self.groups if g.grows)

    @property
    def most_growth(self) -> int:
        """The most blocks one further token can take."""
        return sum(group.grows for group in self.groups) if self.groups else 1

    def tokens(self, num_blocks: int) -> int:
        """Return the tokens that so many blocks hold, of those that every further token takes."""
        if not self.groups:
            return num_blocks * self.block_size_tokens
        return int(num_blocks / self._blocks_a_token())

    def aside_tokens(self, num_tokens: int) -> int:
        """Return what the bounded groups keep of a request, in the unit of :meth:`tokens`."""
        if not self.groups or not any(g.grows for g in self.groups):
            return 0
        bounded = sum(g.kept(num_tokens) for g in self.groups if not g.grows)
        return int(bounded / self._blocks_a_token())

    def room_tokens(self, num_tokens: int, num_free_blocks: int) -> int:
        """Return how many tokens more a prompt of *num_tokens* may have with so many blocks more.

        Free blocks only: what the bounded groups give back meanwhile is not counted on.
        """
        size = self.block_size_tokens
        if not self.groups:
            return (blocks_for(num_tokens, size) + num_free_blocks) * size - num_tokens
        most = self.blocks(num_tokens) + num_free_blocks
        longest = range(num_tokens, num_tokens + (num_free_blocks + 1) * self._largest + 1)
        return bisect_right(longest, most, key=self.blocks) - 1

    @property
    def _largest(self) -> int:
        return max(group.block_size_tokens for group in self.groups)

    def _blocks_a_token(self) -> float:
        """Return the blocks a further token takes on average; of all groups if none grows."""
        growing = [g for g in self.groups if g.grows] or list(self.groups)
        return sum(1.0 / g.block_size_tokens for g in growing)


@lru_cache(maxsize=64)
def layout_of(block_size_tokens: int, groups: tuple[KvGroup, ...]) -> KvLayout:
    """Return the layout, made once for an engine that shows it before every plan."""
    return KvLayout(block_size_tokens, groups)
