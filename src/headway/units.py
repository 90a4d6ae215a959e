"""Small conversions. Seconds and tokens everywhere; milliseconds only at the edges."""

from __future__ import annotations

GIB = 1024**3
"""Bytes."""


def blocks_for(num_tokens: int, block_size_tokens: int) -> int:
    """Return how many KV blocks hold *num_tokens* (rounded up)."""
    return -(-num_tokens // block_size_tokens)


def ms_to_s(value_ms: float) -> float:
    """Return milliseconds as seconds."""
    return value_ms / 1000.0


def format_s(value_s: float | None) -> str:
    """Return a span for a person: ``"1.24 s"``, ``"87 ms"``, or ``"–"`` for none."""
    if value_s is None:
        return "–"
    return f"{value_s * 1000:.0f} ms" if value_s < 1 else f"{value_s:.2f} s"
