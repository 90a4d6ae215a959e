"""Errors whose message is one sentence for the person who made the mistake."""

from __future__ import annotations


class HeadwayError(Exception):
    """Base of every error Headway raises on purpose; ``str()`` is one clear sentence."""


class UserError(HeadwayError):
    """A mistake in what a user wrote: exit code 2 on the command line, 400 over HTTP."""


class InvariantError(HeadwayError):
    """The books do not balance or a state made an illegal move; carries the story."""
