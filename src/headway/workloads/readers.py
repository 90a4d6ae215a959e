"""Reads a trace in any known format: requests in order of arrival, and how the file was read.

Nothing is guessed in silence: every column and unit that the file leaves open is told in
:meth:`~headway.workloads.reading.Reading.sentence`, and
:class:`~headway.workloads.reading.ReadOptions` says otherwise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.units import blocks_for
from headway.workloads.reading import Reading, ReadOptions, skips
from headway.workloads.schema import (
    WorkloadRequest,
    check_tenant,
    checked,
    count,
    fitting,
    hashes,
    request_of,
)
from headway.workloads.trace_columns import columns_in
from headway.workloads.trace_formats import OWN, pick, recognised, why_failed, without
from headway.workloads.trace_rows import Rows, rows_of
from headway.workloads.trace_times import DATE, NAMES, UNITS_S, Stamps, unit_of

HASH_SIZES = (512, 16, 32, 64, 128, 256, 1024)
"""Tokens a hash may stand for, the likeliest first: Mooncake's, then vLLM's and Qwen's block."""

RATES_RPS = (1 / 3600, 100_000.0)
"""Below one request an hour and above 100,000 a second the unit is more likely wrong."""


def load(path: str | Path, options: ReadOptions | None = None) -> list[WorkloadRequest]:
    """Return the requests of :func:`read`."""
    return read(path, options).requests


def read(path: str | Path, options: ReadOptions | None = None) -> Reading:
    """Read a trace, told apart by the names of its columns.

    Raises:
        UserError: One sentence with the place of the mistake, or with the options that decide
            what the file leaves open.
    """
    return _FileReader(rows_of(path), options or ReadOptions()).reading()


class _FileReader:
    """Reads one file, once."""

    def __init__(self, rows: Rows, options: ReadOptions) -> None:
        self.rows = rows
        self.options = options
        self.format = recognised(frozenset(rows.columns), rows.is_json)
        self.columns = columns_in(rows, self.format, options.columns)
        unit = options.time_unit or (self.format.unit if self.format else None)
        if any(role == "arrived" for role, _ in options.columns):
            unit = options.time_unit
        self.stamps = Stamps(self.columns.get("arrived", ""), unit)
        self.is_own = self.format is OWN
        self.made: list[WorkloadRequest] = []
        self.numbers: list[int] = []
        self.skipped: Counter[str] = Counter()

    def reading(self) -> Reading:
        """Return what the file holds."""
        for index, (number, row) in enumerate(self.rows.numbered):
            request = self._request(self.rows.where(number), row, index)
            if request is not None:
                self.made.append(request)
                self.numbers.append(number)
        if self.rows.num_empty:
            self.skipped["without any value"] = self.rows.num_empty
        if not self.made:
            why = "; ".join(skips(self.skipped))
            raise UserError(f"{self.rows.path} holds no requests{f' ({why})' if why else ''}.")
        result = Reading([], self.format.name if self.format else "columns as given", self.columns)
        self._set_hashes(result)
        self._set_order(result)
        self._set_times(result)
        result.requests = checked(self._placed(), str(self.rows.path))
        result.num_skipped = self.skipped
        result.ignored = [] if self.is_own else without(self.rows.columns, self.columns.values())
        return result

    def _placed(self) -> Iterator[tuple[str, WorkloadRequest]]:
        for number, request in zip(self.numbers, self.made, strict=True):
            yield self.rows.where(number), request

    # What a row is.

    def _request(self, where: str, row: Mapping[str, Any], index: int) -> WorkloadRequest | None:
        if self.is_own:
            return self._own(where, row, index)
        failed = why_failed(row) if self.format is not None and self.format.is_result else None
        if failed is not None:
            self.skipped[failed] += 1
            return None
        values = {role: pick(row, column) for role, column in self.columns.items()}
        for role in ("arrived", "prompt", "output"):
            if role in self.columns and values[role] is None:
                raise UserError(f"{where}: the column {self.columns[role]!r} is missing.")
        at = self.stamps.value(where, values["arrived"]) if "arrived" in values else 0.0
        num_output_tokens = count(where, self.columns["output"], values["output"])
        num_prompt_tokens = count(where, self.columns["prompt"], values["prompt"], minimum=1)
        chain = hashes(where, values.get("hashes") or ())
        slo_class = values.get("class") or None
        if slo_class is not None and not isinstance(slo_class, str):
            raise UserError(
                f"{where}: {self.columns['class']} must be text, not {slo_class!r:.60}."
            )
        tenant = values.get("tenant") or None
        if tenant is not None:
            check_tenant(where, self.columns["tenant"], tenant)
        if num_output_tokens == 0:
            self.skipped["with 0 output tokens"] += 1
            return None
        return WorkloadRequest(
            f"r{index}",
            at,
            num_prompt_tokens,
            num_output_tokens,
            slo_class,
            hash_ids=chain,
            tenant=tenant,
        )

    def _own(self, where: str, row: Mapping[str, Any], index: int) -> WorkloadRequest | None:
        """Return a row of our own format; renamed columns first get our names."""
        given = {k: v for k, v in row.items() if v != "" or self.rows.is_json}
        for role, ours in OWN.columns().items():
            name = self.columns.get(role)
            if name != ours:
                given.pop(ours, None)
                if name is not None:
                    given[ours] = given.pop(name, None)
        if self.columns.get("arrived") is None:
            given["arrived_at_s"] = 0.0
        elif given.get("arrived_at_s") is not None:
            given["arrived_at_s"] = self.stamps.value(where, given["arrived_at_s"])
        output = given.get("num_output_tokens")
        if output is not None and count(where, self.columns["output"], output) == 0:
            request_of({**given, "num_output_tokens": 1}, where, index)
            self.skipped["with 0 output tokens"] += 1
            return None
        if self.options.hash_tokens is not None and given.get("hash_ids"):
            given["hash_tokens"] = self.options.hash_tokens
        return request_of(given, where, index)

    # What only the whole file says.

    def _set_hashes(self, result: Reading) -> None:
        chained = [r for r in self.made if r.hash_ids]
        if not chained:
            self.columns.pop("hashes", None)
        if not chained or self.is_own:
            return
        known = self.format.hash_tokens if self.format else None
        size = self.options.hash_tokens or known
        if size is None:
            size = self._hash_size(chained)
            result.inferred.append(f"a hash stands for {size} tokens, by the lengths of prompts")
        result.hash_tokens = size
        self.made = [
            fitting(self.rows.where(number), replace(request, hash_tokens=size))
            for number, request in zip(self.numbers, self.made, strict=True)
        ]

    def _hash_size(self, chained: list[WorkloadRequest]) -> int:
        fits = {size: sum(_fits(request, size) for request in chained) for size in HASH_SIZES}
        best = max(HASH_SIZES[:2], key=lambda size: fits[size])
        best = best if fits[best] else max(HASH_SIZES, key=lambda size: fits[size])
        if not fits[best]:
            raise UserError(
                f"{self.rows.top}: no usual number of tokens for each of {self.columns['hashes']}"
                " fits the lengths of prompts: say --hash-tokens."
            )
        return best

    def _set_order(self, result: Reading) -> None:
        times = [request.arrived_at_s for request in self.made]
        later = next((i for i in range(1, len(times)) if times[i] < times[i - 1]), None)
        if later is None:
            return
        is_result = self.format is not None and self.format.is_result
        if not (self.options.sort or is_result):
            raise UserError(
                f"{self.rows.where(self.numbers[later])}: {self.stamps.column} goes back from"
                f" {times[later - 1]:.15g} to {times[later]:.15g}; requests must be in order of"
                " arrival, or say --sort."
            )
        order = sorted(range(len(times)), key=times.__getitem__)
        self.made = [self.made[i] for i in order]
        self.numbers = [self.numbers[i] for i in order]
        result.is_sorted = True
        result.inferred.append("sorted by arrival")

    def _set_times(self, result: Reading) -> None:
        if "arrived" not in self.columns:
            result.inferred.append("no times: all requests come at once")
            return
        first, last = self.made[0].arrived_at_s, self.made[-1].arrived_at_s
        column = self.stamps.column
        unit = self.stamps.unit
        is_given = bool(self.options.time_unit)
        if unit == DATE:
            if not self.is_own:
                result.inferred.append(f"times are dates (column {column}), UTC without an offset")
        elif unit is None:
            try:
                unit, why = unit_of(column, (first, last), len(self.made))
            except UserError as error:
                raise UserError(f"{self.rows.top}: {error}") from None
            result.inferred.append(f"times read as {NAMES[unit]}: the column is {column}, {why}")
        elif not self.is_own or is_given:
            said = "as given" if is_given else "as the format says"
            result.inferred.append(f"times in {NAMES[unit]}, {said} (column {column})")
        if self.rows.remark:
            result.inferred.append(self.rows.remark)
        result.unit = unit
        unit_s = UNITS_S.get(unit, 1.0)
        is_kept = self.is_own and not self.options.columns and unit != DATE
        zero = 0.0 if is_kept else first
        if not is_kept or unit_s != 1.0:
            self.made = [
                replace(r, arrived_at_s=round((r.arrived_at_s - zero) * unit_s, 6))
                for r in self.made
            ]
        self._check_rate()

    def _check_rate(self) -> None:
        span_s = self.made[-1].arrived_at_s - self.made[0].arrived_at_s
        if self.options.any_rate or span_s <= 0:
            return
        rate_rps = (len(self.made) - 1) / span_s
        if not RATES_RPS[0] <= rate_rps <= RATES_RPS[1]:
            rate = f"{rate_rps:.3g} a second" if rate_rps > 1 else f"one in {1 / rate_rps:,.0f} s"
            raise UserError(
                f"{self.rows.top}: the times of {self.stamps.column} make {len(self.made)} requests"
                f" in {span_s:.6g} s, {rate}; is the unit right? Say --time-unit, or --any-rate"
                " if it is."
            )


def _fits(request: WorkloadRequest, size: int) -> bool:
    length = request.num_prompt_tokens
    return len(request.hash_ids) in (length // size, blocks_for(length, size))
