"""What a profile's folder holds: its plan and its records, and the rows and frontiers that they come to. No torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from experiments import ledger
from experiments.errors import UserError
from experiments.profile import config, rows
from experiments.profile.config import Profile
from experiments.profile.frontier import Frontier
from experiments.profile.point import Item, Point

PLAN = "plan.json"


@dataclass
class Plan:
    """What is to be known, resolved: the report needs nothing else to read the records."""

    items: list[Item]
    predicted: list[Point]
    measured: list[Point]
    trials: list[Point] = field(default_factory=list)
    """Measurements that confirm frontiers."""
    traced: list[Point] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return {
            "items": [asdict(item) for item in self.items],
            **{name: [point.to_json() for point in getattr(self, name)] for name in _POINTS},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        points = {name: [Point.from_json(point) for point in data[name]] for name in _POINTS}
        return cls([Item(**item) for item in data["items"]], **points)


_POINTS = ("predicted", "measured", "trials", "traced")


class Study:
    """A profile, its plan and all records by their keys."""

    def __init__(self, profile: Profile, plan: Plan, records: Mapping[str, dict[str, Any]]) -> None:
        self.profile, self.plan, self.records = profile, plan, records

    @functools.cached_property
    def rows(self) -> list[rows.Row]:
        """What is known of each context of each series."""
        return rows.assemble([*self.plan.measured, *self.plan.predicted], self.records, self.plan.trials)

    @property
    def wanted(self) -> list[dict[str, Any]]:
        """The records of what is planned; others may lie in the folder."""
        points = [point for name in _POINTS for point in getattr(self.plan, name)]
        return [self.records[point.key] for point in points if point.key in self.records]

    @property
    def frontiers(self) -> list[Frontier]:
        """Of every series for which one was predicted."""
        return [found for point in self.plan.predicted if (found := self.frontier(point)) is not None]

    def frontier(self, predicted: Point) -> Frontier | None:
        """The frontier of a prediction's series, with what was measured to confirm it."""
        record = self.records.get(predicted.key, {})
        if predicted.limit is None or "frontier" not in record:
            return None
        trials = [point for point in self.plan.trials if point.series == predicted.series and point.key in self.records]
        ends = {point.contexts[0]: _end(self.records[point.key]) for point in trials}
        return Frontier(predicted.series, predicted.limit, record["frontier"], ends)


def _end(trial: Mapping[str, Any]) -> str:
    """How it ended for a frontier: what was passed through once did fit, whether or not there was time to repeat it."""
    passed = "process_bytes" in (trial.get("result") or {})
    return "done" if trial["status"] == "timeout" and passed else trial["status"]


def is_profile(folder: Path) -> bool:
    """Whether the folder holds a profile."""
    return (folder / PLAN).is_file()


def read(folder: Path) -> Study:
    """A folder's profile as it stands. Raises UserError where its files cannot be read."""
    try:
        profile = config.load(str(folder / "experiment.yaml"), {})
        plan = Plan.from_json(json.loads((folder / PLAN).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{folder} holds no profile that can be read ({error}): run `archlab profile` again") from None
    return Study(profile, plan, read_records(folder / "cells"))


def read_records(cells: Path) -> dict[str, dict[str, Any]]:
    """Every readable record by its key."""
    found = {path.stem: ledger.read_record(path) for path in sorted(cells.glob("*.json"))}
    return {key: record for key, record in found.items() if record is not None}
