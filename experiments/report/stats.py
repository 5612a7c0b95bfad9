"""What may be concluded from a few seeds: means with intervals, and paired comparisons.

Runs of one seed see the same examples, so architectures are compared by their differences seed by seed: Student's
paired t test ("The probable error of a mean", Biometrika 1908), two-sided at 5 %. Within a family of pairs (all pairs
of architectures in one task, at one score) the p values are adjusted by Holm's step-down method ("A simple
sequentially rejective multiple test procedure", Scand. J. Statist. 1979). That seeds must vary for a claim about an
architecture: Bouthillier et al., "Accounting for variance in machine learning benchmarks", MLSys 2021.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

LEVEL = 0.95
"""Of every interval; its complement is the error rate of every test."""
MARGIN = 0.01
"""Of a score: a smaller mean difference is no win, however sure it is. Training stops when a task is solved, so what
lies between two that solve it says nothing."""
_EXACT = 1e-12
"""A spread below it is rounding: the differences are equal."""


Outcome = Literal["different", "uncorrected", "small", "level"]
"""different: after adjustment; uncorrected: only before it; small: by less than the margin; level: not
distinguishable."""


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its 95 % t interval, mean ± half; half is None for one seed."""

    mean: float
    half: float | None
    n: int


@dataclass(frozen=True)
class Pair:
    """Two variants compared over the seeds that both have; difference = first - second."""

    first: str
    second: str
    difference: Interval
    p: float
    """Of the paired t test."""
    adjusted: float
    """The same, adjusted for all pairs of its family."""

    @property
    def verdict(self) -> Outcome:
        """What may be said of the two."""
        if self.p >= 1 - LEVEL:
            return "level"
        if abs(self.difference.mean) < MARGIN:
            return "small"
        return "different" if self.adjusted < 1 - LEVEL else "uncorrected"


def interval(values: Sequence[float]) -> Interval | None:
    """The mean of the values with its t interval; None of nothing."""
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, t_quantile(LEVEL, len(values) - 1) * error, len(values))


def compare(scores: Mapping[str, Mapping[int, float]]) -> list[Pair]:
    """Every pair of variants that share two seeds or more, with p values adjusted over all of these pairs.

    scores: {variant: {seed: score}}.
    """
    found = []
    for first, second in itertools.combinations(scores, 2):
        seeds = sorted(scores[first].keys() & scores[second].keys())
        differences = [scores[first][seed] - scores[second][seed] for seed in seeds]
        difference = interval(differences)
        if difference is not None and difference.n > 1:
            found.append((first, second, difference, paired_p(differences)))
    adjusted = holm([p for *_, p in found])
    return [Pair(*pair, after) for pair, after in zip(found, adjusted, strict=True)]


def paired_p(differences: Sequence[float]) -> float:
    """The two-sided p value that the mean of two or more differences is zero.

    Differences that are all equal have no spread to test against: p is 1 if they are zero, else 0.
    """
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread < _EXACT:
        return 1.0 if abs(mean) < _EXACT else 0.0
    t = abs(mean) / (spread / math.sqrt(len(differences)))
    return max(0.0, 1 - t_probability(t, len(differences) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values, in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def growth(points: Sequence[tuple[float, float]]) -> float:
    """The exponent e of y ~ x^e, by least squares on the logarithms of two or more positive (x, y)."""
    logarithms = [(math.log(x), math.log(y)) for x, y in points]
    return statistics.linear_regression(*zip(*logarithms, strict=True)).slope


def t_quantile(probability: float, df: int) -> float:
    """The t with P(|T| <= t) = probability for Student's T of df degrees of freedom: 4.303 for 0.95 and 2."""
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        below = t_probability(math.sqrt(df) * math.tan(middle), df) < probability
        low, high = (middle, high) if below else (low, middle)
    return math.sqrt(df) * math.tan(low)


def t_probability(t: float, df: int) -> float:
    """P(|T| <= t) for Student's T of df degrees of freedom.

    The finite series of Abramowitz and Stegun, "Handbook of Mathematical Functions" (1964), 26.7.3 and 26.7.4.
    """
    odd = df % 2
    theta = math.atan(t / math.sqrt(df))
    term, total = math.cos(theta) if odd else 1.0, 0.0
    for k in range(1 + odd, df, 2):
        total += term
        term *= math.cos(theta) ** 2 * k / (k + 1)
    series = math.sin(theta) * total
    return 2 / math.pi * (theta + series) if odd else series
