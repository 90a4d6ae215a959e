"""Settings of a server: what ``--additional-config '{"headway": {...}}'`` may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from headway import registry
from headway.errors import UserError
from headway.policy.scheduler import Scheduler
from headway.slo import SloBook

LEAST_RECORD_GIB, MOST_RECORD_GIB = 0.001, 100_000

MOST_RETRIES_ELSEWHERE = 100
"""No proxy asks more servers for one request; a larger number is a mistake."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings.

    Attributes:
        policy: A preset of :mod:`headway.registry`.
        overload: ``"demote"`` or ``"refuse"`` (see the registry).
        options: Keyword arguments of the preset.
        slo_file: TOML file of classes; without it only explicit promises count.
        record: Folder that keeps every event and plan as JSON lines in rotating files, for
            ``replay``. A name that ends in ``.jsonl`` is a single file for debugging: it grows
            without bound and never drops a line, whatever memory that takes.
        record_gib: Most GiB of files in that folder; the oldest are removed.
        budgets: File that keeps the error budgets of classes and tenants with a target through
            restarts, one file per server; without it the budgets start afresh with the server.
            They are counted only with ``--page``.
        request_start: Whether to believe the header ``X-Request-Start`` and start promises when a
            proxy received the request. Only for servers that clients reach through a proxy that
            sets it.
        retries_elsewhere: Number of other servers that a proxy asks after a refusal. An
            appointment (``Retry-After``) takes room only if the refusal is the last one.
    """

    policy: str = registry.DEFAULT
    overload: str = "demote"
    options: Mapping[str, Any] = field(default_factory=dict)
    slo_file: str | None = None
    record: str | None = None
    record_gib: float = 1.0
    budgets: str | None = None
    request_start: bool = False
    retries_elsewhere: int = 0

    @classmethod
    def parse(cls, given: Mapping[str, Any] | None) -> Settings:
        """Check *given* and return it as settings.

        Raises:
            UserError: A key or a value is not allowed.
        """
        given = given or {}
        if not isinstance(given, Mapping):
            raise UserError(f'"headway" in --additional-config must be an object, not {given!r}.')
        allowed = [f.name for f in fields(cls)]
        unknown = sorted(set(given) - set(allowed))
        if unknown:
            raise UserError(f"{unknown[0]!r} is no Headway setting; allowed: {', '.join(allowed)}.")
        settings = cls(**given)
        if not isinstance(settings.options, Mapping):
            raise UserError('"options" must be an object of the policy\'s own options.')
        for name, what in (("record", "folder"), ("budgets", "file")):
            value = getattr(settings, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UserError(f'"{name}" must name a {what}, not {value!r:.60}.')
        settings._check_record_gib()
        settings._check_proxies()
        settings.build()
        return settings

    def _check_record_gib(self) -> None:
        gib = self.record_gib
        is_number = isinstance(gib, int | float) and not isinstance(gib, bool)
        if not is_number or not LEAST_RECORD_GIB <= gib <= MOST_RECORD_GIB:
            raise UserError(
                f'"record_gib" must be a number of GiB from {LEAST_RECORD_GIB:g} to'
                f" {MOST_RECORD_GIB:g}, not {gib!r:.60}."
            )

    def _check_proxies(self) -> None:
        if not isinstance(self.request_start, bool):
            raise UserError(
                f'"request_start" must be true or false, not {self.request_start!r:.60}.'
            )
        most, count = MOST_RETRIES_ELSEWHERE, self.retries_elsewhere
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= most:
            raise UserError(
                f'"retries_elsewhere" must be a whole number from 0 to {most}, not {count!r:.60}.'
            )

    @property
    def records_one_file(self) -> bool:
        """Whether ``record`` names a file and no folder."""
        return self.record is not None and self.record.endswith(".jsonl")

    def build(self, **core: Any) -> Scheduler:
        """Return a new policy core; *core* goes to :func:`headway.registry.build`."""
        return registry.build(self.policy, overload=self.overload, options=self.options, **core)

    def book(self) -> SloBook:
        """Return the SLO classes of these settings."""
        return SloBook.load(self.slo_file) if self.slo_file else SloBook.empty()
