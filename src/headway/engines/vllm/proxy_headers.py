"""What proxies say of a request: when it came to them, and which try of it this is.

Anybody can write a header, so each counts only where the operator says that proxies set it
(``--request-start``, ``--retries-elsewhere``). The HTTP edge reads them and puts what it found into
the stamp beside the promise; the scheduler's process reads it there. Nonsense is never a mistake
of the client's, who did not write it: the request is served as if the header were not there, and
counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headway.engines.vllm.clock import OLDEST_S
from headway.engines.vllm.headers import Headers
from headway.slo import LAST_TRY_IN_STAMP, STAMP, START_IN_STAMP

REQUEST_START = b"x-request-start"
"""When a proxy took the request in: nginx writes ``t=`` and seconds, Apache ``t=`` and
microseconds, Heroku milliseconds alone."""

ATTEMPT_COUNT = b"x-envoy-attempt-count"
"""Envoy's: 1 at the first server it asks, 2 at the next, where its virtual host says
``include_request_attempt_count``."""

UNITS_PER_S = (1, 1_000, 1_000_000)
"""Seconds, milliseconds and microseconds, told apart by magnitude."""

SINCE_S, UNTIL_S = 1e9, 1e10
"""Unix seconds that an instant lies between (2001 and 2286): in no other unit is it one too."""

SKEW_S = 1.0
"""A start so far in the future is now: clocks of one site differ by less. One later is ignored."""

SENSELESS_S = 3600.0
"""A start so long ago is ignored: no proxy waits as long, so that a clock is wrong. One that is
older than :data:`~headway.engines.vllm.clock.OLDEST_S` is taken for as old as that."""

_INSTANT = re.compile(r"(?:t=)?([0-9]{10,16}(?:\.[0-9]{1,9})?)")
_COUNT = re.compile(rb"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True)
class Forwarding:
    """A request's way to the server, as the scheduler's process is told of it.

    Attributes:
        age_s: Seconds that had passed when it reached the server, 0 to :data:`OLDEST_S`.
        start: What became of its :data:`REQUEST_START`: ``"used"``, ``"ignored"``, or ``None``
            where there was none, or none counts.
        last_try: See :class:`~headway.policy.events.Arrived`.
    """

    age_s: float = 0.0
    start: str | None = None
    last_try: float = 1.0


@dataclass(frozen=True, slots=True)
class ProxyHeaders:
    """Which headers of proxies are believed.

    Attributes:
        request_start: As :class:`headway.config.Settings` has it, and the next one.
    """

    request_start: bool = False
    retries_elsewhere: int = 0

    @classmethod
    def believed_by(cls, settings: Mapping[str, Any]) -> ProxyHeaders:
        """Return what a server's settings say, as they were given; the scheduler checks them."""
        return cls(settings.get("request_start", False), settings.get("retries_elsewhere", 0))

    def found_in(self, headers: Headers, now_s: float) -> dict[str, Any]:
        """Return what goes into the stamp; nothing where nothing is believed.

        Args:
            headers: As ASGI has them.
            now_s: Unix seconds.
        """
        found: dict[str, Any] = {}
        if self.request_start:
            texts = _values(headers, REQUEST_START)
            if texts:
                found[START_IN_STAMP] = start_in(b",".join(texts), now_s)
        if self.retries_elsewhere:
            counts = _values(headers, ATTEMPT_COUNT)
            found[LAST_TRY_IN_STAMP] = last_try_of(counts, self.retries_elsewhere)
        return found

    def told_in(self, extra_args: Mapping[str, Any] | None, reached_at_s: float) -> Forwarding:
        """Return what the stamp of an engine's request says, as far as it is believed here.

        A client may have written it where there is no edge, and says no more with it than with
        the headers.

        Args:
            reached_at_s: When the request reached the server, by the clock of the stamp.
        """
        stamp = (extra_args or {}).get(STAMP)
        if not isinstance(stamp, Mapping):
            return Forwarding()
        age_s, start, last_try = 0.0, None, 1.0
        if self.request_start and START_IN_STAMP in stamp:
            start, started_at_s = "ignored", stamp[START_IN_STAMP]
            if isinstance(started_at_s, float) and math.isfinite(started_at_s):
                start, age_s = "used", min(max(reached_at_s - started_at_s, 0.0), OLDEST_S)
        if self.retries_elsewhere:
            told = stamp.get(LAST_TRY_IN_STAMP)
            last_try = told if isinstance(told, float) and 0.0 <= told <= 1.0 else 1.0
        return Forwarding(age_s, start, last_try)


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value for other, value in headers if other == name]


def start_in(value: bytes, now_s: float) -> float | None:
    """Return the earliest sane instant in a header, in Unix seconds; ``None`` without one.

    Several proxies in a row may each have added theirs. What is returned is not in the future and
    at most :data:`OLDEST_S` ago.
    """
    instants = map(_instant, value.decode("latin-1").split(","))
    sane = [at for at in instants if at and now_s - SENSELESS_S <= at <= now_s + SKEW_S]
    return min(max(min(sane), now_s - OLDEST_S), now_s) if sane else None


def _instant(text: str) -> float | None:
    match = _INSTANT.fullmatch(text.strip(" \t"))
    number = float(match[1]) if match else 0.0
    return next((s for per_s in UNITS_PER_S if SINCE_S <= (s := number / per_s) < UNTIL_S), None)


def last_try_of(counts: list[bytes], retries_elsewhere: int) -> float:
    """Return how likely it is that no other server is asked after a refusal here, 0 to 1.

    Args:
        counts: Values of :data:`ATTEMPT_COUNT`. Without one that is a count each try is as likely
            as the others to be the last.
        retries_elsewhere: How many others a proxy asks.
    """
    if len(counts) == 1 and _COUNT.fullmatch(counts[0].strip()):
        return float(int(counts[0]) > retries_elsewhere)
    return 1 / (retries_elsewhere + 1)
