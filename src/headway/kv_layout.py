"""How many KV blocks so many tokens take, for a model with one kind of attention or several.

A model's layers form groups that share one pool of blocks. A group of full attention keeps a block
for every so many tokens; one with a sliding window, chunked-local attention or a recurrent state
keeps a bounded number, and a few more while a prompt is computed. The engine says both bounds
(:class:`KvGroup`); nothing of a model is known here.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.units import blocks_for

Floats = npt.NDArray[np.float64]


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
        return min(blocks_for(num_tokens, self.block_size_tokens), self.most_blocks or sys.maxsize)

    def kept(self, num_tokens: int) -> int:
        """Return the blocks that a request of so many tokens keeps."""
        return min(blocks_for(num_tokens, self.block_size_tokens), self.kept_blocks or sys.maxsize)

    def grows_after(self, num_tokens: int) -> bool:
        """Return whether the token after so many takes a block more."""
        size, kept = self.block_size_tokens, self.kept_blocks
        return num_tokens % size == 0 and (not kept or num_tokens < kept * size)

    def passing(self, num_tokens: int) -> int:
        """Return the blocks that computing so many prompt tokens takes beyond what is kept.

        They come free when the next tokens are computed.
        """
        if self.grows:
            return 0
        size, most = self.block_size_tokens, self.most_blocks - self.kept_blocks
        return min(blocks_for(num_tokens, size), most)


@dataclass(frozen=True)
class KvLayout:
    """The groups of a model, counted together.

    Whatever adds up the future of many requests counts in *tokens*: one is the room that a further
    token takes in the groups that keep every token. What bounded groups hold counts in that unit
    too; where all are bounded, it is the room that a first token takes.

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
        return sum(count * group.blocks(num_tokens) for group, count in self._kinds)

    def kept_blocks(self, num_tokens: int) -> int:
        """Return the blocks that a request with *num_tokens* of KV gives back if it leaves."""
        if not self.groups:
            return blocks_for(num_tokens, self.block_size_tokens)
        return sum(count * group.kept(num_tokens) for group, count in self._kinds)

    def growth(self, num_tokens: int) -> int:
        """Return the blocks that the token after *num_tokens* takes."""
        if not self.groups:
            return int(num_tokens % self.block_size_tokens == 0)
        return sum(count for group, count in self._kinds if group.grows_after(num_tokens))

    def passing_blocks(self, num_tokens: int) -> int:
        """Return the blocks that a step with so many prompt tokens takes only for a while."""
        return sum(count * group.passing(num_tokens) for group, count in self._kinds)

    def passing_tokens(self, num_blocks: int, most_tokens: int) -> int:
        """Return how many of *most_tokens* prompt tokens :meth:`passing_blocks` has room for."""
        if self.passing_blocks(most_tokens) <= num_blocks:
            return most_tokens
        return bisect_right(range(most_tokens), num_blocks, key=self.passing_blocks) - 1

    def whole_blocks(self, num_tokens: int) -> int:
        """Return the blocks that *num_tokens* fill in the groups that keep every token."""
        if not self.groups:
            return num_tokens // self.block_size_tokens
        return sum(num_tokens // g.block_size_tokens for g in self.groups if g.grows)

    @property
    def most_growth(self) -> int:
        """The most blocks one further token can take."""
        return len(self.groups) or 1

    def tokens(self, num_blocks: int) -> int:
        """Return the tokens that so many blocks are room for."""
        if not self.groups:
            return num_blocks * self.block_size_tokens
        return int(num_blocks / self._blocks_a_token)

    def held_tokens(self, num_tokens: int) -> int:
        """Return the room that a request with so many tokens of KV holds."""
        return num_tokens + self.aside_tokens(num_tokens)

    def aside_tokens(self, num_tokens: int) -> int:
        """Return the room that the bounded groups hold of a request."""
        if not self.groups:
            return 0
        bounded = sum(count * g.kept(num_tokens) for g, count in self._kinds if not g.grows)
        aside = int(bounded / self._blocks_a_token)
        return aside if self._has_growing else aside - num_tokens

    def usual_tokens(self, num_tokens: Floats) -> Floats:
        """Return the room that requests with so many tokens hold, last blocks half filled."""
        if not self.groups:
            return num_tokens + self.block_size_tokens / 2
        blocks = np.zeros(num_tokens.shape)
        for group, count in self._kinds:
            own = num_tokens / group.block_size_tokens + 1 / 2
            blocks += count * (own if group.grows else np.minimum(own, group.kept_blocks))
        return blocks / self._blocks_a_token

    def room_tokens(self, num_tokens: int, num_free_blocks: int) -> int:
        """Return how many tokens more a prompt of *num_tokens* may have with so many blocks more.

        Free blocks only: what the bounded groups give back meanwhile is not counted on.
        """
        size = self.block_size_tokens
        if not self.groups:
            return (blocks_for(num_tokens, size) + num_free_blocks) * size - num_tokens
        most = self.blocks(num_tokens) + num_free_blocks
        largest = max(group.block_size_tokens for group in self.groups)
        longest = range(num_tokens, num_tokens + (num_free_blocks + 1) * largest + 1)
        return bisect_right(longest, most, key=self.blocks) - 1

    @cached_property
    def grows_every_tokens(self) -> int:
        """A request takes a further block only after a multiple of so many tokens."""
        return math.gcd(*(g.block_size_tokens for g in self.groups)) or self.block_size_tokens

    @cached_property
    def _kinds(self) -> tuple[tuple[KvGroup, int], ...]:
        """Groups that differ, and how many there are of each: most models have two."""
        return tuple(Counter(self.groups).items())

    @cached_property
    def _has_growing(self) -> bool:
        return any(group.grows for group in self.groups)

    @cached_property
    def _blocks_a_token(self) -> float:
        """Blocks of one token in the unit of this class."""
        counted = [group for group in self.groups if group.grows] or self.groups
        return sum(1.0 / group.block_size_tokens for group in counted)


@lru_cache
def layout_of(block_size_tokens: int, groups: tuple[KvGroup, ...]) -> KvLayout:
    """Return the layout, made once for an engine that shows it before every plan."""
    return KvLayout(block_size_tokens, groups)
