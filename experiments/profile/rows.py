"""Records -> rows: what is known of each context of each series, measured and predicted side by side. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from experiments.profile.point import Point

STOPS = ("oom", "timeout")
"""Ends after which a longer context of the same series is not tried."""
GAP, SLACK = 0.1, 64 * 2**20
"""Share of the process's peak, and bytes, by which it may differ from what was tracked without being remarked."""
Series = tuple[str, str, int]
"""Label, mode, rows."""


@dataclass
class Row:
    """One context of one series."""

    label: str
    arch: str
    mode: str
    rows: int
    context: int
    status: str | None = None
    """done, oom, timeout, failed; `not tried` after one of the first two; None where it was not to be measured."""
    reason: str | None = None
    measured: dict[str, Any] = field(default_factory=dict)
    predicted: dict[str, Any] = field(default_factory=dict)
    trial: bool = False
    """Measured to confirm a frontier, not because its context was asked for."""

    @property
    def series(self) -> Series:
        return self.label, self.mode, self.rows

    @property
    def measured_bytes(self) -> int | None:
        """The tracked peak; None where there were too many operations to follow."""
        return (self.measured.get("tracked") or {}).get("peak_bytes")

    @property
    def process_bytes(self) -> int | None:
        """The peak of the process, on CUDA of its allocator, beyond what it began with; of decoding without reading."""
        return self.measured.get("process_bytes")

    @property
    def predicted_bytes(self) -> int | None:
        return self.predicted.get("peak_bytes")

    @property
    def bytes(self) -> int | None:
        """Measured where it is, else predicted."""
        return self.measured_bytes or self.predicted_bytes or self.process_bytes

    @property
    def split(self) -> dict[str, int]:
        """Bytes at the peak by category; empty where unknown."""
        return (self.measured.get("tracked") or {}).get("split") or self.predicted.get("split") or {}

    @property
    def gap(self) -> float | None:
        """The process's peak over the tracked, else predicted, peak, less 1; None where they agree or are unknown.

        Of decoding, and of the reading before it, the one that is further off.
        """
        known = self.measured.get("tracked") or self.predicted
        process, before = self.process_bytes, self.measured.get("process_before_bytes")
        alone = before is None  # then the process's peak is that of all phases
        found = [
            _gap(process, known.get("needed_bytes" if alone else "peak_bytes")),
            _gap(before, known.get("before_bytes")),
        ]
        return max((gap for gap in found if gap is not None), key=abs, default=None)

    @property
    def state_bytes(self) -> int | None:
        return self.measured.get("state_bytes") or self.predicted.get("state_bytes")

    @property
    def speed(self) -> float | None:
        """Measured tokens per second, the median."""
        return (self.measured.get("speed") or {}).get("median")

    @property
    def roofline(self) -> float | None:
        """Tokens per second that the card cannot exceed."""
        seconds = self.predicted.get("roofline_seconds")
        return self.predicted["tokens"] / seconds if seconds else None

    @property
    def flops_per_token(self) -> float | None:
        return self.predicted["flops"] / self.predicted["tokens"] if self.predicted else None


def _gap(process: int | None, known: int | None) -> float | None:
    if not process or not known or abs(process - known) <= GAP * process + SLACK:
        return None
    return process / known - 1


def assemble(
    points: Sequence[Point], records: Mapping[str, Mapping[str, Any]], trials: Sequence[Point] = ()
) -> list[Row]:
    """The rows of these points, by series in their order, contexts ascending; trials are those of frontiers."""
    rows: dict[tuple[Series, int], Row] = {}
    for point in (*points, *trials):
        for context in point.contexts:
            row = Row(point.label, point.arch, point.mode, point.rows, context, trial=point in trials)
            rows.setdefault((point.series, context), row)
    for point in (*points, *trials):
        record = records.get(point.key)
        if record is None:
            continue
        if point.kind == "predicted":
            for result in record.get("results", []):
                if known := rows.get((point.series, result["context"])):  # no frontier that was not measured
                    known.predicted = result
            continue
        row = rows[point.series, point.contexts[0]]
        row.status, row.reason, row.measured = record["status"], record["reason"], record.get("result") or {}
    _mark_not_tried(points, rows)
    order = list(dict.fromkeys(point.series for point in points))
    return sorted(rows.values(), key=lambda row: (order.index(row.series), row.context))


def _mark_not_tried(points: Iterable[Point], rows: Mapping[tuple[Series, int], Row]) -> None:
    for point in points:
        row = rows[point.series, point.contexts[0]]
        if point.kind == "measured" and row.status is None and (stop := stopped(point, rows.values())):
            row.status, row.reason = "not tried", f"{stop.status} at {stop.context:,}"


def stopped(point: Point, rows: Iterable[Row]) -> Row | None:
    """The shorter context of the same series that ran out of memory or time."""
    shorter = (row for row in rows if row.series == point.series and row.context < point.contexts[0])
    return next((row for row in shorter if row.status in STOPS), None)
