"""Step times of a GPU nobody has at hand: seven numbers a (GPU, model, parallelism), as JSON.

A profile is what a virtual engine charges for a step. The numbers are fitted from published
operator measurements, from a live server's own steps or written down as a roofline; each file
says which, and how far it was off on steps it had not seen. See ``docs/profiles.md``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.latency.model import StepShape

SCHEMA = 1
_ENDING = ".json"


@dataclass(frozen=True, slots=True)
class StepCost:
    """Seconds a unit of everything a step computes; all non-negative, so time is monotone.

    Attributes:
        knee_tokens: Tokens of a step (prompt tokens and decodes) up to which a token costs
            ``per_token_s``, and beyond which ``per_token_above_s``: before the knee the weights
            are read, whatever is computed with them; after it the arithmetic is the longer.
        fixed_s: An empty step.
        per_context_s: One KV token read by a decode.
        per_decode_s: One decode, whatever its context.
        per_pair_s: One unit of ``chunk x (prefix + chunk / 2)``.
        per_prefill_s: One prompt with a chunk in the step.
    """

    knee_tokens: int
    fixed_s: float
    per_token_s: float
    per_token_above_s: float
    per_context_s: float
    per_decode_s: float
    per_pair_s: float
    per_prefill_s: float

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step of this shape."""
        tokens = shape.num_prefill_tokens + shape.num_decodes
        above = tokens - self.knee_tokens
        if above > 0:
            token_s = self.knee_tokens * self.per_token_s + above * self.per_token_above_s
        else:
            token_s = tokens * self.per_token_s
        return (
            self.fixed_s
            + token_s
            + self.per_context_s * shape.sum_context_tokens
            + self.per_decode_s * shape.num_decodes
            + self.per_pair_s * shape.chunk_context
            + self.per_prefill_s * shape.num_prefills
        )


@dataclass(frozen=True, slots=True)
class FitError:
    """How far a cost was off on *num_steps* steps it had not seen: |predicted / true - 1|."""

    num_steps: int
    median: float
    mean: float
    p95: float


@dataclass(frozen=True, slots=True)
class Profile:
    """One GPU (or group of them) serving one model.

    Attributes:
        name: Such as ``llama-3.1-8b@h100``; ``x4`` behind the GPU says tensor parallel over 4.
        parallelism: ``tp1``, ``tp4``, ...
        kv_bytes_per_token: KV of one token over all layers and GPUs; 0 when not known.
        kv_capacity_tokens: KV the group of GPUs holds by default.
        max_num_batched_tokens, max_num_seqs: vLLM's defaults for its API server on this GPU.
        source: Where the cost comes from, and the command that makes it again.
        assumptions: What was assumed beyond the source.
        error: Held-out error of the fit; ``None`` for a roofline, which was fitted to nothing.
    """

    name: str
    gpu: str
    model: str
    parallelism: str
    cost: StepCost
    kv_bytes_per_token: int
    kv_capacity_tokens: int
    max_num_batched_tokens: int
    max_num_seqs: int
    source: str
    assumptions: tuple[str, ...] = ()
    error: FitError | None = None

    def step_s(self, shape: StepShape) -> float:
        """Return the seconds of a step of this shape; non-decreasing in every size."""
        return self.cost.step_s(shape)

    def to_json(self) -> str:
        """Return the text of the profile's file."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n"


def names() -> tuple[str, ...]:
    """Return the names of the profiles that come with Headway."""
    found = (entry.name for entry in _shipped().iterdir())
    return tuple(sorted(name.removesuffix(_ENDING) for name in found if name.endswith(_ENDING)))


def load(name: str | Path) -> Profile:
    """Return a shipped profile by name, or one of the user's by the path of its file.

    Anything that ends in ``.json`` or has a folder in front is a path.

    Raises:
        UserError: No such profile, or its file is not one.
    """
    text = str(name)
    if isinstance(name, Path) or text.endswith(_ENDING) or "/" in text:
        try:
            return parse(Path(name).read_text(encoding="utf-8"), text)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise UserError(f"Cannot read the profile {text}: {why}.") from None
    if text not in names():
        raise UserError(
            f"GPU profile {text!r:.80} is not known; the profiles are {', '.join(names())},"
            " or the path of a .json file that headway calibrate wrote."
        )
    return parse(_shipped().joinpath(text + _ENDING).read_text(encoding="utf-8"), text)


def parse(text: str, where: str) -> Profile:
    """Return the profile that the text of a file describes; *where* names it in errors.

    Raises:
        UserError: Not JSON, another schema, or a field that is missing, unknown or nonsense.
    """
    try:
        row = json.loads(text)
    except ValueError:
        raise UserError(f"The profile {where} is not JSON.") from None
    if not isinstance(row, dict):
        raise UserError(f"The profile {where} must be a JSON object.")
    if row.pop("schema", None) != SCHEMA:
        raise UserError(f'The profile {where} must say "schema": {SCHEMA}.')
    row = _checked(row, Profile, where, optional=("assumptions", "error"))
    row["cost"] = StepCost(**_checked(row["cost"], StepCost, f"{where}, cost"))
    if row.get("error") is not None:
        row["error"] = FitError(**_checked(row["error"], FitError, f"{where}, error"))
    assumptions = row.get("assumptions", [])
    if not isinstance(assumptions, list) or not all(isinstance(a, str) for a in assumptions):
        raise UserError(f"The profile {where}: assumptions must be a list of sentences.")
    row["assumptions"] = tuple(assumptions)
    profile = Profile(**row)
    if profile.cost.fixed_s + profile.cost.per_token_s <= 0:
        raise UserError(
            f"The profile {where}: fixed_s or per_token_s must be above 0, or a step is free."
        )
    return profile


def _checked(row: Any, kind: type, where: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return *row* when it has the fields of *kind* and each number and text is sane."""
    if not isinstance(row, Mapping):
        raise UserError(f"The profile {where} must be a JSON object.")
    types = {field.name: str(field.type) for field in fields(kind)}
    for name in types:
        if name not in row and name not in optional:
            raise UserError(f"The profile {where} lacks {name!r}.")
    for name, value in row.items():
        if name not in types:
            raise UserError(
                f"The profile {where} has an unknown field {name!r:.60}; known are"
                f" {', '.join(types)}."
            )
        if types[name] == "str" and not isinstance(value, str):
            raise UserError(f"The profile {where}: {name} must be text, not {value!r:.60}.")
        if types[name] in ("int", "float"):
            _check_number(name, value, types[name] == "int", where)
    return dict(row)


def _check_number(name: str, value: Any, whole: bool, where: str) -> None:
    kinds: Any = int if whole else (int, float)
    least = 1 if whole and name not in ("kv_bytes_per_token", "num_steps") else 0
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or value < least:
        what = "a whole number" if whole else "a finite number"
        raise UserError(
            f"The profile {where}: {name} must be {what} of at least {least}, not {value!r:.60}."
        )


def _shipped() -> Any:
    """Return the folder of the shipped profiles, also from within a zip."""
    return resources.files("headway.latency").joinpath("profiles")
