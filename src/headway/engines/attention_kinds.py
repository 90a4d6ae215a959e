"""A model's kinds of attention by name (``full``, ``sliding:1024``), one word a group of layers."""

from __future__ import annotations

from headway.errors import UserError

KINDS = "full, sliding:TOKENS, local:TOKENS, state, aligned-state"
"""What a group may be; ``aligned-state`` keeps recurrent states in the prefix cache."""

MOST_GROUPS = 64
"""More than any model has; a typing mistake in a count is no reason to fill the memory."""

FULL = ("full",)
"""One group that keeps every token: the plain case."""


def parts_of(kind: str) -> tuple[str, int]:
    """Return a kind's name and its tokens, 0 where it has none.

    Raises:
        UserError: *kind* is none of :data:`KINDS`.
    """
    name, colon, tokens = kind.partition(":")
    if name in ("sliding", "local") and tokens.isdecimal() and 0 < int(tokens) < 10**9:
        return name, int(tokens)
    if name in ("full", "state", "aligned-state") and not colon:
        return name, 0
    raise UserError(f"{kind!r:.60} is no kind of attention; allowed are {KINDS}.")


def kinds_of(text: str) -> tuple[str, ...]:
    """Read ``full,sliding:1024x5``: the kinds of all groups, one with a count so many times.

    Raises:
        UserError: A kind is not known, or there are too many groups.
    """
    kinds: list[str] = []
    for part in text.split(","):
        kind, times, count = part.strip().rpartition("x")
        is_counted = bool(times) and count.isdecimal() and len(count) < 4
        kind = kind if is_counted else part.strip()
        parts_of(kind)
        kinds += [kind] * (int(count) if is_counted else 1)
    if not 0 < len(kinds) <= MOST_GROUPS:
        raise UserError(f"A model has 1 to {MOST_GROUPS} groups of layers, not {len(kinds)}.")
    return tuple(kinds)
