"""What a request was promised, and where promises come from.

A promise arrives with the request (``slo_ttft_ms`` and its siblings), or through a class
named in an SLO file. A field of the request overrides the same field of its class.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.units import ms_to_s

MAX_PROMISE_S = 7 * 24 * 3600.0
"""No promise is longer than a week: a larger number is a unit mistake."""

REQUEST_FIELDS = ("slo_ttft_ms", "slo_tbt_ms", "slo_jct_ms", "slo_class", "slo_weight")
"""Names a request may carry in ``vllm_xargs``; any other ``slo_*`` name is a mistake."""


@dataclass(frozen=True, slots=True)
class Slo:
    """One request's promise. ``None`` means not promised.

    Attributes:
        ttft_s: Seconds from arrival to the first token.
        tbt_s: Seconds between two tokens; met when 99 % of the gaps keep it.
        jct_s: Seconds from arrival to the last token.
        weight: How much this request counts against others; 1 unless told.
        class_name: The class it is reported under.
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    jct_s: float | None = None
    weight: float = 1.0
    class_name: str = "none"

    @property
    def is_promise(self) -> bool:
        """Whether anything at all was promised."""
        return self.ttft_s is not None or self.tbt_s is not None or self.jct_s is not None


NO_PROMISE = Slo()


def _checked(name: str, value: Any, *, unit: str, maximum: float) -> float:
    """Return *value* as a positive finite float, or raise a sentence naming the mistake."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"{name} must be a number of {unit} greater than 0, not {value!r}.")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise UserError(
            f"{name} must be a number of {unit} greater than 0, not {value!r:.60}."
        ) from None
    if not math.isfinite(number) or not 0 < number <= maximum:
        raise UserError(
            f"{name} must be greater than 0 and at most {maximum:g} {unit}, not {value!r:.60}."
        )
    return number


@dataclass(frozen=True, slots=True)
class SloBook:
    """The classes an operator named, and the one that applies when a request names none.

    ``default`` is ``None`` when nothing is promised to requests that ask for nothing.
    """

    classes: Mapping[str, Slo]
    default: str | None = None

    @classmethod
    def builtin(cls) -> SloBook:
        """Return the book used for workloads without a file: one class, ``chat``."""
        return cls({"chat": Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")}, "chat")

    @classmethod
    def empty(cls) -> SloBook:
        """Return the book of a server without a file: only explicit promises count."""
        return cls({}, None)

    @classmethod
    def load(cls, path: str | Path) -> SloBook:
        """Read an SLO file (TOML, seconds).

        Raises:
            UserError: The file is missing, is not TOML, or holds a bad value.
        """
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"Cannot read the SLO file {path}: {error.strerror}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"The SLO file {path} is not valid TOML: {error}.") from None
        return cls.parse(document, source=str(path))

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str = "SLO file") -> SloBook:
        """Build a book from a parsed document; see :meth:`load` for errors."""
        unknown = sorted(set(document) - {"default", "classes"})
        if unknown:
            raise UserError(
                f"{source}: unknown key {unknown[0]!r}; allowed are 'default' and 'classes'."
            )
        tables = document.get("classes", {})
        if not isinstance(tables, Mapping) or not tables:
            raise UserError(f"{source}: name at least one class, as in [classes.chat].")
        classes = {name: _class_of(name, table, source) for name, table in tables.items()}
        default = document.get("default")
        if default is not None and (not isinstance(default, str) or default not in classes):
            raise UserError(
                f"{source}: default = {default!r} is not one of the classes {sorted(classes)}."
            )
        return cls(classes, default)

    def resolve(self, fields: Mapping[str, Any] | None) -> Slo:
        """Return the promise of a request that carried *fields* (``vllm_xargs``).

        Raises:
            UserError: An ``slo_*`` name or value is not allowed.
        """
        given = {k: v for k, v in (fields or {}).items() if k.startswith("slo_")}
        for name in given:
            if name not in REQUEST_FIELDS:
                raise UserError(
                    f"{name!r:.60} is not an SLO field; allowed are {', '.join(REQUEST_FIELDS)}."
                )
        slo = self._base(given.pop("slo_class", None))
        if not given:
            return slo
        if not slo.is_promise and slo.class_name == "none":
            slo = replace(slo, class_name="custom")
        changes: dict[str, float] = {}
        for name, value in given.items():
            if name == "slo_weight":
                changes["weight"] = _checked(name, value, unit="units", maximum=1e6)
            else:
                field = name.removeprefix("slo_").replace("_ms", "_s")
                changes[field] = ms_to_s(
                    _checked(name, value, unit="milliseconds", maximum=MAX_PROMISE_S * 1000)
                )
        return replace(slo, **changes)  # type: ignore[arg-type]

    def _base(self, class_name: Any) -> Slo:
        if class_name is None:
            return self.classes[self.default] if self.default is not None else NO_PROMISE
        if not isinstance(class_name, str) or class_name not in self.classes:
            allowed = ", ".join(sorted(self.classes)) or "none, since no SLO file was given"
            raise UserError(
                f"slo_class {class_name!r:.60} is not known; the classes are: {allowed}."
            )
        return self.classes[class_name]


def _class_of(name: str, table: Any, source: str) -> Slo:
    """Return the class *name* described by one TOML table."""
    where = f"{source}: [classes.{name}]"
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table of ttft_s, tbt_s, jct_s, weight.")
    unknown = sorted(set(table) - {"ttft_s", "tbt_s", "jct_s", "weight"})
    if unknown:
        raise UserError(
            f"{where}: unknown key {unknown[0]!r}; allowed are ttft_s, tbt_s, jct_s, weight."
        )
    fields = {
        key: _checked(
            f"{where} {key}",
            value,
            unit="units" if key == "weight" else "seconds",
            maximum=1e6 if key == "weight" else MAX_PROMISE_S,
        )
        for key, value in table.items()
    }
    return Slo(class_name=name, **fields)
