"""What the rows say: growth laws, who overtakes whom, agreement of prediction and measurement. No torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

from experiments.profile.rows import Row, Series
from experiments.report.stats import growth

Speeds = Mapping[int, Mapping[str, float]]
"""Context -> tokens per second, "median" and quartiles, "low" and "high"."""
UNSTEADY = 1.5
"""Upper over lower quartile of a speed, beyond which something else was at work on the machine."""
LAST = 4
"""Contexts, the longest known, that a growth exponent is fitted to: a law shows where constants no longer do."""


def mode_of(series: Series) -> str:
    """`decode x8`."""
    _, mode, count = series
    return f"{mode} x{count}" if count > 1 else mode


def by_series(rows: Iterable[Row]) -> dict[Series, list[Row]]:
    """Rows of each series, contexts ascending."""
    found: dict[Series, list[Row]] = {}
    for row in rows:
        found.setdefault(row.series, []).append(row)
    return found


def exponent(rows: Sequence[Row]) -> float | None:
    """e of memory ~ L^e over the longest contexts that are known, beyond what does not depend on context.

    None of fewer than two.
    """
    known = [(float(row.context), float(size)) for row in rows if (size := _beyond(row)) > 0][-LAST:]
    return growth(known) if len(known) > 1 else None


def _beyond(row: Row) -> int:
    """Bytes at the peak beside parameters, gradients and the optimiser's."""
    return (row.bytes or 0) - sum(row.split.get(name, 0) for name in ("parameters", "gradients", "optimizer"))


def crossovers(rows: Iterable[Row]) -> list[str]:
    """`mamba overtakes gqa in decode at 6,100 tokens`: where one measured speed comes to exceed another's for good.

    Only of two whose quartiles are apart, the other way round, at some context before and at the last, and that
    change places once: what goes to and fro is the machine's doing.
    """
    found = []
    speeds = {
        series: {row.context: row.measured["speed"] for row in members if row.speed}
        for series, members in by_series(rows).items()
    }
    for (one, first), (two, second) in itertools.combinations(speeds.items(), 2):
        if one[1:] != two[1:]:
            continue
        for fast, slow, ahead, behind in ((one, two, first, second), (two, one, second, first)):
            at = _overtakes(ahead, behind)
            if at is not None:
                found.append(f"{fast[0]} overtakes {slow[0]} in {mode_of(fast)} at about {_round(at):,} tokens")
    return found


def _overtakes(ahead: Speeds, behind: Speeds) -> float | None:
    """The context from which `ahead` stays ahead, having been behind; interpolated on logarithms."""
    shared = sorted(ahead.keys() & behind.keys())
    if not shared or ahead[shared[-1]]["low"] <= behind[shared[-1]]["high"]:
        return None
    if not any(ahead[context]["high"] < behind[context]["low"] for context in shared):
        return None
    ratios = [math.log(ahead[context]["median"] / behind[context]["median"]) for context in shared]
    if sum((one > 0) != (two > 0) for one, two in itertools.pairwise(ratios)) > 1:
        return None
    last = max(i for i, ratio in enumerate(ratios) if ratio <= 0)
    low, high = math.log(shared[last]), math.log(shared[last + 1])
    return math.exp(low + (high - low) * -ratios[last] / (ratios[last + 1] - ratios[last]))


def _round(value: float) -> int:
    """To two significant digits."""
    scale = 10 ** max(0, int(math.log10(value)) - 1)
    return round(value / scale) * scale


def unsteady(rows: Iterable[Row]) -> tuple[int, int]:
    """How many measured speeds have quartiles more than UNSTEADY apart, and how many there are with quartiles."""
    speeds = [row.measured["speed"] for row in rows if row.speed and row.measured["speed"].get("samples", 1) > 1]
    return sum(speed["high"] > UNSTEADY * speed["low"] for speed in speeds), len(speeds)


def disagreement(rows: Iterable[Row]) -> tuple[float, Row] | None:
    """The largest relative difference of prediction and tracked measurement, and where; None where none has both."""
    both = []
    for row in rows:
        if row.measured_bytes and row.predicted_bytes:
            both.append((abs(row.predicted_bytes / row.measured_bytes - 1), row))
    return max(both, key=lambda item: item[0], default=None)
