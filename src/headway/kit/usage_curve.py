"""The KV cache's future: how many tokens all residents will hold at each future step.

Past-Future (arXiv 2507.10150): the peak of the future usage decides admission. Differs: kept
incrementally in absolute step numbers. A resident that decodes one token a step holds
``offset + step`` tokens until ``finish``, so passing time changes nothing stored.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedKeyList

Int = npt.NDArray[np.int64]


class UsageCurve:
    """Residents by predicted finishing step. Sizes in tokens, times in decode steps."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, int]] = {}
        self._by_finish: SortedKeyList = SortedKeyList(key=lambda item: (item[0], item[1]))
        self._arrays: tuple[Int, Int] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def entry(self, key: str) -> tuple[int, int]:
        """Return ``(offset, finish)`` of a resident."""
        return self._entries[key]

    def put(self, key: str, held_tokens: int, step: int, finish: int) -> None:
        """Insert or move a resident that holds *held_tokens* at *step* until *finish*."""
        self.discard(key)
        offset = held_tokens - step
        self._entries[key] = (offset, finish)
        self._by_finish.add((finish, key))
        self._arrays = None

    def discard(self, key: str) -> None:
        """Remove a resident if it is there."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._by_finish.remove((entry[1], key))
            self._arrays = None

    def peak_with(self, held_tokens: int, step: int, finish: int, slop_tokens: float) -> float:
        """Return the highest usage from *step* on if a newcomer joined.

        The usage only grows between two finishes, so its peaks lie at the finishes.

        Args:
            held_tokens: Tokens the newcomer holds at once; 0 with ``finish < step`` asks for
                the peak as it is.
            slop_tokens: Added per resident for its partly filled last block.
        """
        finishes, at_finish = self._sums(slop_tokens)
        joins = finish >= step
        offset = held_tokens - step
        peak = 0.0
        if len(finishes):
            usage = at_finish.astype(np.float64)
            usage = np.where(finishes < step, -np.inf, usage)
            if joins:
                usage = usage + np.where(finishes <= finish, offset + finishes + slop_tokens, 0.0)
            peak = max(float(usage.max()), 0.0)
        if joins:
            first = int(np.searchsorted(finishes, finish, side="left"))
            count = len(finishes) - first
            offsets = self._suffix_offsets()
            beside = float(offsets[first]) if count else 0.0
            own = beside + offset + (count + 1) * (finish + slop_tokens)
            peak = max(peak, own)
        return peak

    def _sums(self, slop_tokens: float) -> tuple[Int, npt.NDArray[np.float64]]:
        """Return finishes ascending, and the usage just before each of them."""
        finishes, suffix = self._build()
        count = len(finishes)
        still_there = np.arange(count, 0, -1)
        # Residents with an equal finish are all there: use the first of each run's suffix.
        first = np.searchsorted(finishes, finishes, side="left")
        usage = suffix[first] + still_there[first] * (finishes.astype(np.float64) + slop_tokens)
        return finishes, usage

    def _suffix_offsets(self) -> Int:
        return self._build()[1]

    def _build(self) -> tuple[Int, Int]:
        if self._arrays is None:
            keys = list(self._by_finish)
            finishes = np.fromiter((f for f, _ in keys), np.int64, len(keys))
            offsets = np.fromiter((self._entries[k][0] for _, k in keys), np.int64, len(keys))
            self._arrays = (finishes, np.cumsum(offsets[::-1])[::-1])
        return self._arrays
