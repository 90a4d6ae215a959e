"""Settings of a server: what ``--additional-config '{"headway": {...}}'`` may hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from headway.errors import UserError
from headway.policy import registry
from headway.policy.scheduler import Scheduler
from headway.slo import SloBook


@dataclass(frozen=True, slots=True)
class Settings:
    """Checked settings.

    Attributes:
        policy: A preset of :mod:`headway.policy.registry`.
        overload: ``"demote"`` or ``"refuse"`` (see the registry).
        options: Keyword arguments of the preset.
        slo_file: TOML file of classes; without it only explicit promises count.
        record: File that receives every event and plan as JSON lines, for ``replay``; a
            debugging aid that writes in the planning path.
    """

    policy: str = registry.DEFAULT
    overload: str = "demote"
    options: Mapping[str, Any] = field(default_factory=dict)
    slo_file: str | None = None
    record: str | None = None

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
        settings.build()
        return settings

    def build(self, **core: Any) -> Scheduler:
        """Return a new policy core; *core* goes to :func:`headway.policy.registry.build`."""
        return registry.build(self.policy, overload=self.overload, options=self.options, **core)

    def book(self) -> SloBook:
        """Return the SLO classes of these settings."""
        return SloBook.load(self.slo_file) if self.slo_file else SloBook.empty()
