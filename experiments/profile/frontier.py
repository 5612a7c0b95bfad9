"""The longest context that fits a limit: found by prediction, confirmed by measuring on both sides. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.profile.config import LEAST
from experiments.profile.rows import Series

MOST = 2**30
"""Contexts beyond are not searched: nothing there would be read within a day."""
RESOLUTION = 256
"""The frontier is found to one part in so many."""
BEYOND, WITHIN = 1.15, 0.75
"""Where is measured next, as a share of the predicted frontier: after it fitted, and after it did not, where even a
loop over time fits: of that, a process may hold 30 % more than its tensors."""


@dataclass(frozen=True)
class Frontier:
    """What is known of one series."""

    series: Series
    limit: int
    """Bytes."""
    predicted: int
    """Tokens; 0 where not even the shortest context fits, MOST where the search ended."""
    ends: Mapping[int, str]
    """Contexts that were measured to confirm it, and how each ended."""

    @property
    def fits(self) -> int | None:
        """The longest context that was measured to fit."""
        return max((context for context, end in self.ends.items() if end == "done"), default=None)

    @property
    def fails(self) -> int | None:
        """The shortest that was measured not to."""
        return min((context for context, end in self.ends.items() if end == "oom"), default=None)

    @property
    def verdict(self) -> str:
        """What the measurements say of the prediction."""
        if not self.ends:
            return "not measured"
        if self.ends.get(self.predicted) == "done":
            return "confirmed" if self.fails else "it fits, how much more does is open"
        return "too far" if self.ends.get(self.predicted) == "oom" else "unconfirmed"

    @property
    def next(self) -> int | None:
        """The context to measure next; None where that would tell no more."""
        if not LEAST < self.predicted < MOST:
            return None
        if not self.ends:
            return self.predicted
        factor = {"done": BEYOND, "oom": WITHIN}.get(self.ends.get(self.predicted, ""))
        return int(self.predicted * factor) if factor and len(self.ends) == 1 else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        label, mode, rows = self.series
        return {
            "architecture": label,
            "mode": mode,
            "sequences": rows,
            "limit_bytes": self.limit,
            "predicted": self.predicted,
            "fits": self.fits,
            "fails": self.fails,
            "verdict": self.verdict,
            "measured": {str(context): end for context, end in self.ends.items()},
        }


def search(needed: Callable[[int], int], limit: int) -> int:
    """The longest context up to MOST whose needed bytes, which grow with it, keep to the limit; 0 = none does."""
    low, high = LEAST, LEAST
    known = {LEAST: needed(LEAST)}
    if known[LEAST] > limit:
        return 0
    while known[high] <= limit:
        if high == MOST:
            return MOST
        low, high = high, min(4 * high, MOST)
        known[high] = needed(high)
    while high - low > max(1, low // RESOLUTION):
        # Memory is nearly linear, so a secant soon finds one end; halving, by turns, moves the other.
        halving = len(known) % 3 == 0
        middle = _between(low, high, 0.5 if halving else (limit - known[low]) / (known[high] - known[low]))
        known[middle] = needed(middle)
        low, high = (middle, high) if known[middle] <= limit else (low, middle)
    return low


def _between(low: int, high: int, share: float) -> int:
    """Where the limit lies if memory is linear; a little aside, so that both ends close in; never an end itself."""
    step = max(1, low // (2 * RESOLUTION))
    guess = low + round(share * (high - low))
    aside = guess + step if guess - low < high - guess else guess - step
    return min(max(aside, low + 1), high - 1)
