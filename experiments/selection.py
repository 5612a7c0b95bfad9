"""Selection of a learning rate: on validation alone, at trained lengths alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.tasks import Task

LOWER_IS_BETTER = ("bits_per_byte", "loss")


@dataclass(frozen=True)
class Score:
    """What a record is judged by: the mean of a metric over some validation lengths, the loss where that is equal."""

    metric: str
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, task: Task) -> Score:
        """The headline metric at the trained lengths; at all where none of the test lengths is trained."""
        trained = tuple(length for length in task.test_lengths if length <= task.train_lengths[1])
        return cls(task.metrics[0], trained or task.test_lengths)

    def value(self, record: Mapping[str, Any] | None, metric: str | None = None) -> float | None:
        """The record's score; None where it did not end as `done` or the value is not finite."""
        if record is None or record.get("status") != "done" or not self.lengths:
            return None
        values = [
            _number(record, "quality", "validation", str(length), metric or self.metric) for length in self.lengths
        ]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if len(known) == len(values) else None

    def order(self, record: Mapping[str, Any] | None) -> tuple[float, float] | None:
        """Smaller is better; None where there is no score."""
        score, loss = self.value(record), self.value(record, "loss")
        if score is None:
            return None
        return (score if self.metric in LOWER_IS_BETTER else -score, math.inf if loss is None else loss)


def _number(record: Mapping[str, Any], *path: str) -> float | None:
    """The finite number at a path; None where there is none, whatever there is instead."""
    found: Any = record
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int | float) and math.isfinite(found) else None


def select(score: Score, grid: Mapping[float, Mapping[str, Any] | None]) -> dict[str, Any]:
    """The best rate of {rate: record or None}, or None where no cell came through, with the whole curve.

    {"metric", "lr", "candidates": [{"lr", "score", "status"}]}; an unfinished cell has status null.
    """
    orders = {rate: score.order(record) for rate, record in grid.items()}
    scored = {rate: order for rate, order in orders.items() if order is not None}
    return {
        "metric": score.metric,
        "lr": min(scored, key=lambda rate: scored[rate]) if scored else None,
        "candidates": [
            {"lr": rate, "score": score.value(record), "status": record and record.get("status")}
            for rate, record in grid.items()
        ],
    }
