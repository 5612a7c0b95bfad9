"""What the report is built from: an experiment, its records, and which of them may stand beside one another."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import config
from experiments.config import Experiment
from experiments.errors import UserError
from experiments.report import records
from experiments.report.records import Entry
from experiments.report.units import METRICS, listing
from experiments.selection import Score, select
from experiments.variants import parse_all


@dataclass(frozen=True)
class Contest:
    """One task: what may be compared in it, and what may not."""

    task: str
    entries: tuple[Entry, ...]
    """Every record of the task, of either kind."""
    labels: tuple[str, ...]

    @functools.cached_property
    def trains(self) -> list[Entry]:
        """Training records of the present sources, however they ended."""
        return [entry for entry in self.entries if entry.kind == "train" and entry.stale is None]

    @functools.cached_property
    def rates(self) -> dict[str, float]:
        """The learning rate at which each variant counts: the one selected on validation with its first seed."""
        score = Score(self.metric, tuple(self.trained))
        chosen: dict[str, float] = {}
        for label in self.labels:
            tried = [entry for entry in self.trains if entry.label == label and entry.lr is not None]
            first = [entry for entry in tried if entry.seed == 0 and self.trained]
            grid = {entry.lr: self._validation(entry) for entry in first if entry.lr is not None}
            best = select(score, grid)["lr"] or next((entry.lr for entry in tried), None)
            if best is not None:
                chosen[label] = best
        return chosen

    @functools.cached_property
    def tried(self) -> dict[str, dict[float, float]]:
        """Per variant with a grid of learning rates, what each scored on validation with the first seed."""
        found: dict[str, dict[float, float]] = {}
        for entry in sorted(self.trains, key=lambda entry: entry.lr or 0.0):
            score = entry.score(self.metric, self.trained, "validation") if entry.usable and entry.seed == 0 else None
            if score is not None and entry.lr is not None:
                found.setdefault(entry.label, {})[entry.lr] = score
        return {label: found[label] for label in self.labels if len(found.get(label, ())) > 1}

    @functools.cached_property
    def runs(self) -> dict[str, list[Entry]]:
        """Per variant, its usable runs at its learning rate, by seed; variants without any are left out."""
        usable = {
            label: sorted((entry for entry in self._counting(label) if entry.usable), key=lambda entry: entry.seed)
            for label in self.labels
        }
        return {label: entries for label, entries in usable.items() if entries}

    @functools.cached_property
    def broken(self) -> dict[str, list[Entry]]:
        """Per variant, the runs at its learning rate that did not come to their end."""
        ended = {label: [entry for entry in self._counting(label) if not entry.usable] for label in self.labels}
        return {label: entries for label, entries in ended.items() if entries}

    @functools.cached_property
    def costs(self) -> dict[str, Entry]:
        """Per variant, its usable measurement of cost."""
        return {entry.label: entry for entry in self.entries if entry.kind == "cost" and entry.usable}

    @functools.cached_property
    def lengths(self) -> list[int]:
        """Every length that was tested."""
        found = {
            int(length)
            for entry in self.trains
            for split in ("test", "validation")
            for length in entry.get("quality", split) or {}
        }
        return sorted(found)

    @functools.cached_property
    def train_range(self) -> tuple[int, int] | None:
        """Shortest and longest length in training."""
        found = self._first("cell", "task_config", "train_lengths")
        return (found[0], found[-1]) if found else None

    @functools.cached_property
    def trained(self) -> list[int]:
        """The tested lengths that are no extrapolation; all where every one is."""
        if self.train_range is None:
            return self.lengths
        return [length for length in self.lengths if length <= self.train_range[1]] or self.lengths

    @functools.cached_property
    def beyond(self) -> int | None:
        """The longest tested length, where it is longer than any in training."""
        if not self.lengths or self.train_range is None or self.lengths[-1] <= self.train_range[1]:
            return None
        return self.lengths[-1]

    @functools.cached_property
    def metric(self) -> str:
        """The headline metric: the first that the task names, else the first known one that its records hold."""
        named = self._first("data", "metrics")
        if named:
            return str(named[0])
        held = {name for entry in self.trains for scores in _rows(entry) for name in scores}
        return next((name for name in ("bits_per_byte", *METRICS) if name in held), "token_accuracy")

    @property
    def solvable(self) -> bool:
        """Whether a run can solve the task: it is scored by exact match."""
        return any("exact_match" in scores for entry in self.trains for scores in _rows(entry))

    @functools.cached_property
    def refusal(self) -> str | None:
        """Why the runs may not share a table: with one seed, they were trained on different data."""
        for seed in sorted({entry.seed for runs in self.runs.values() for entry in runs}):
            seen: dict[str, list[str]] = {}
            for label, runs in self.runs.items():
                for entry in runs:
                    if entry.seed == seed and entry.get("data", "fingerprint"):
                        seen.setdefault(str(entry.get("data", "fingerprint")), []).append(label)
            if len(seen) > 1:
                groups = listing(f"{print_} ({', '.join(labels)})" for print_, labels in seen.items())
                return f"with seed {seed} the data differ, by their fingerprints {groups}"
        return None

    @property
    def seeds(self) -> int:
        """The most seeds that a variant has."""
        return max(map(len, self.runs.values()), default=0)

    def scores(self, metric: str, lengths: Sequence[int]) -> dict[str, dict[int, float]]:
        """{variant: {seed: score}}, of what is known."""
        found = {
            label: {entry.seed: entry.score(metric, lengths) for entry in entries}
            for label, entries in self.runs.items()
        }
        known = {
            label: {seed: value for seed, value in row.items() if value is not None} for label, row in found.items()
        }
        return {label: row for label, row in known.items() if row}

    def _counting(self, label: str) -> list[Entry]:
        rate = self.rates.get(label)
        return [entry for entry in self.trains if entry.label == label and entry.lr == rate]

    def _validation(self, entry: Entry) -> dict[str, Any]:
        """As much of a record as the selection of a rate reads, whatever else is missing."""
        rows = {str(length): entry.get("quality", "validation", length) or {} for length in self.trained}
        return {"status": entry.status, "quality": {"validation": rows}}

    def _first(self, *path: str) -> Any:
        return next((found for entry in self.entries if (found := entry.get(*path))), None)


def _rows(entry: Entry) -> Iterable[Mapping[str, Any]]:
    """The test scores of each length."""
    return (entry.get("quality", "test") or {}).values()


@dataclass(frozen=True)
class Study:
    """An experiment with all its records."""

    folder: Path
    experiment: Experiment
    entries: tuple[Entry, ...]
    unreadable: tuple[str, ...]
    """Files among the records that hold none."""
    planned: tuple[Entry, ...] = ()
    """How each variant meets the budget in each task, before anything ran."""

    @functools.cached_property
    def labels(self) -> tuple[str, ...]:
        """The variants, in the order of the experiment, then any others that have records."""
        named = [variant.label for variant in parse_all(self.experiment.archs, "arch")]
        return tuple(dict.fromkeys(named + sorted(entry.label for entry in self.entries)))

    @functools.cached_property
    def archs(self) -> dict[str, str]:
        """Label -> the architecture that it is a variant of."""
        recorded = {entry.label: entry.arch for entry in self.entries}
        named = {variant.label: variant.name for variant in parse_all(self.experiment.archs, "arch")}
        return {label: named.get(label) or recorded[label] for label in self.labels}

    @functools.cached_property
    def contests(self) -> list[Contest]:
        """One per task, in the order of the experiment; tasks without a record have none."""
        named = [variant.label for variant in parse_all(self.experiment.tasks, "task")]
        tasks = dict.fromkeys(named + sorted(entry.task for entry in self.entries))
        return [
            Contest(task, entries, self.labels)
            for task in tasks
            if (entries := tuple(entry for entry in self.entries if entry.task == task))
        ]

    @functools.cached_property
    def matching(self) -> dict[tuple[str, str], Entry]:
        """(variant, task) -> what holds its "matching": as recorded, else as planned."""
        rows = [*self.planned, *(entry for entry in self.entries if entry.stale is None)]
        found = {}
        for row in rows:
            label, task = row.get("matching", "label") or row.label, row.get("matching", "task_label") or row.task
            if row.get("matching"):
                found[str(label), str(task)] = row
        return found

    @functools.cached_property
    def missing(self) -> list[tuple[str, str, int]]:
        """(variant, task, seed) of every planned training run without a record."""
        recorded = {(entry.label, entry.task, entry.seed) for entry in self.entries if entry.kind == "train"}
        planned = [
            (arch.label, task.label, seed)
            for task in parse_all(self.experiment.tasks, "task")
            for arch in parse_all(self.experiment.archs, "arch")
            for seed in range(int(task.pick(self.experiment.per_task).get("seeds", self.experiment.seeds)))
        ]
        return [run for run in planned if run not in recorded]


def read(folder: Path) -> Study:
    """Everything that the report is built from.

    Raises UserError where the folder holds no experiment, or one that cannot be read.
    """
    path = folder / "experiment.yaml"
    if not path.is_file():
        raise UserError(f"{folder} holds no experiment: expected the --out of an `archlab compare`")
    sources = functools.cache(records.sources)
    found = {file.name: records.read(file, sources) for file in sorted((folder / "cells").glob("*.json"))}
    experiment = config.load(str(path), {})
    return Study(
        folder,
        experiment,
        _ordered(experiment, [entry for entry in found.values() if entry is not None]),
        tuple(name for name, entry in found.items() if entry is None),
        _matching(folder / "matching.json"),
    )


def _ordered(experiment: Experiment, entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """By task and variant in the experiment's order, training before cost, then by seed and learning rate."""
    tasks = [variant.label for variant in parse_all(experiment.tasks, "task")]
    labels = [variant.label for variant in parse_all(experiment.archs, "arch")]

    def place(entry: Entry) -> tuple[Any, ...]:
        of_task = tasks.index(entry.task) if entry.task in tasks else len(tasks)
        of_label = labels.index(entry.label) if entry.label in labels else len(labels)
        return of_task, entry.task, of_label, entry.label, entry.kind != "train", entry.seed, entry.lr or 0.0

    return tuple(sorted(entries, key=place))


def _matching(file: Path) -> tuple[Entry, ...]:
    """What the plan says of the budget; nothing where the file is missing or is not what it should be."""
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    return tuple(Entry({"matching": row}, None) for row in rows if isinstance(row, dict)) if rows else ()
