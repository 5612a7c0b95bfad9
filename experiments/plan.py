"""Experiment -> cells: every variant on every task, resolved, matched to the budget, checked before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

import archs
from experiments import config, data, match, strict, tasks
from experiments.cell import Cell, Kind
from experiments.config import Cost, Experiment, Train
from experiments.errors import UserError
from experiments.match import Match, Shape
from experiments.selection import Score, select
from experiments.tasks import Task
from experiments.variants import Variant, parse_all

_HARDWARE = ("accelerator", "devices", "strategy")
"""Fields of Train that hold for the whole experiment: cells share one machine."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One variant on one task: all that its cells share."""

    arch: Variant
    arch_config: dict[str, Any]
    task: Variant
    task_config: dict[str, Any]
    train: Train
    cost: Cost
    seeds: int
    rates: tuple[float, ...]
    """One learning rate, or those to select from."""
    score: Score
    match: Match

    def cell(self, kind: Kind, lr: float, seed: int = 0) -> Cell:
        """One cell of it."""
        return Cell(
            kind=kind,
            label=self.arch.label,
            arch=self.arch.spec,
            arch_config=self.arch_config,
            task_label=self.task.label,
            task=self.task.spec,
            task_config=self.task_config,
            seed=seed,
            lr=lr,
            train=self.train,
            cost=self.cost,
        )

    @property
    def trainings(self) -> int:
        """How many cells train it: with selection the grid at one seed, then the other seeds."""
        return len(self.rates) + self.seeds - 1

    @property
    def matching(self) -> dict[str, Any]:
        """How it meets the budget, for the record and matching.json."""
        return {"label": self.arch.label, "task_label": self.task.label, **asdict(self.match)}


@dataclass(frozen=True)
class Plan:
    """What an experiment runs, in three passes: `first`, then `rest` which may depend on results, then `cost`."""

    entries: tuple[Entry, ...]

    def first(self) -> list[Cell]:
        """Every cell that depends on no result, seed 0 of everything first; with selection the grid at seed 0."""
        cells = [
            entry.cell("train", rate, seed)
            for entry in self.entries
            for rate in entry.rates
            for seed in range(entry.seeds if len(entry.rates) == 1 else 1)
        ]
        return sorted(cells, key=lambda cell: cell.seed)

    def selection(self, records: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Per entry with a grid, the rate that is best on validation and what each rate scored (`select`)."""
        return [
            {
                "label": entry.arch.label,
                "task_label": entry.task.label,
                **select(entry.score, self._grid(entry, records)),
            }
            for entry in self.entries
            if len(entry.rates) > 1
        ]

    def rest(self, records: Mapping[str, Mapping[str, Any]]) -> list[Cell]:
        """The other seeds at the selected rates; none for an entry none of whose rates came through."""
        selecting = [entry for entry in self.entries if len(entry.rates) > 1]
        cells = [
            entry.cell("train", chosen["lr"], seed)
            for entry, chosen in zip(selecting, self.selection(records), strict=True)
            if chosen["lr"] is not None
            for seed in range(1, entry.seeds)
        ]
        return sorted(cells, key=lambda cell: cell.seed)

    def cost(self) -> list[Cell]:
        """One measurement of memory and speed per entry."""
        return [entry.cell("cost", entry.rates[0]) for entry in self.entries]

    def possible(self) -> set[str]:
        """The keys of all cells that could belong to it, whatever is selected."""
        trains = (
            entry.cell("train", rate, seed)
            for entry in self.entries
            for rate in entry.rates
            for seed in range(entry.seeds)
        )
        return {cell.key for cell in trains} | {cell.key for cell in self.cost()}

    def entry(self, cell: Cell) -> Entry:
        """What a cell belongs to."""
        return next(
            entry for entry in self.entries if (entry.arch.label, entry.task.label) == (cell.label, cell.task_label)
        )

    def _grid(self, entry: Entry, records: Mapping[str, Mapping[str, Any]]) -> dict[float, Mapping[str, Any] | None]:
        return {rate: records.get(entry.cell("train", rate).key) for rate in entry.rates}


def plan(experiment: Experiment) -> Plan:
    """Resolve everything. Raises UserError for the first mistake of the user's, wherever in the experiment it is."""
    variants = parse_all(experiment.archs, "arch")
    chosen = parse_all(experiment.tasks, "task")
    _check_names(experiment.arch, variants, archs.names(), "arch")
    _check_names(experiment.task, chosen, tasks.names(), "task")
    _check_names(experiment.per_task, chosen, tasks.names(), "per_task")
    _check_device(experiment.train)
    entries: list[Entry] = []
    for task in chosen:
        made, training = _make(task, experiment), _training(experiment, task)
        for variant in variants:
            entries.append(_entry(experiment, variant, task, made, training, entries))
    return Plan(tuple(entries))


def _check_names(table: Mapping[str, Any], variants: Sequence[Variant], known: Iterable[str], where: str) -> None:
    """Settings for what exists but does not take part are no mistake: a preset's, after --archs."""
    strict.check_keys(table, [*known, *(name for variant in variants for name in (variant.name, variant.label))], where)


def _check_device(train: Train) -> None:
    """Raises UserError where the machine lacks what is asked for; processes on a CPU it never lacks."""
    cuda, mps = torch.cuda.device_count(), int(torch.backends.mps.is_available())
    here = {"cuda": cuda, "mps": mps, "gpu": cuda or mps, "auto": cuda or mps}.get(train.accelerator, 0)
    if train.accelerator in ("cuda", "mps", "gpu") and not here:
        kind = {"cuda": "a CUDA GPU", "mps": "an Apple GPU"}.get(train.accelerator, "a GPU")
        raise UserError(f"train.accelerator {train.accelerator} needs {kind} and none is here; use auto or cpu")
    if 0 < here < train.devices:
        raise UserError(
            f"train.devices must be at most {here}, the GPUs that are here, got {train.devices}; "
            f"or set train.accelerator cpu"
        )


def _make(variant: Variant, experiment: Experiment) -> Task:
    """The task, after a look at the data it gives."""
    task = tasks.make(variant.spec, **{**variant.pick(experiment.task), **variant.settings})
    try:
        data.check(task, seed=0)
    except ValueError as error:
        raise UserError(f"task {variant.label}: {error}") from error
    return task


def _entry(
    experiment: Experiment,
    variant: Variant,
    task: Variant,
    made: Task,
    training: tuple[Train, int],
    before: Sequence[Entry],
) -> Entry:
    settings = {**variant.pick(experiment.arch), **variant.settings}
    shape = _shape(made)
    guess = next((entry.match for entry in before if entry.arch.label == variant.label), None)
    fitted = match.fit(variant, settings, shape, experiment.budget, guess)
    arch_config = match.resolve(variant, {**settings, **fitted.solved})
    train, seeds = training
    return Entry(
        arch=variant,
        arch_config=config.plain(arch_config),
        task=task,
        task_config=config.plain(asdict(made)),
        train=train,
        cost=experiment.cost,
        seeds=seeds,
        rates=_rates(experiment, variant, arch_config),
        score=Score.of(made),
        match=fitted,
    )


def _shape(task: Task) -> Shape:
    example = task.sample(np.random.default_rng(0), 1, task.train_lengths[1])
    return Shape(task.vocab_size, example.source.shape[1], example.target.shape[1])


def _training(experiment: Experiment, task: Variant) -> tuple[Train, int]:
    """The training and the number of seeds for one task."""
    own = task.pick(experiment.per_task)
    where = f"per_task.{task.name}"
    if hardware := [name for name in _HARDWARE if name in own]:
        raise UserError(f"{where}.{hardware[0]} cannot differ between tasks: set train.{hardware[0]} for all")
    strict.check_keys(own, [*(field.name for field in dataclasses.fields(Train)), "seeds"], where)
    merged = {**config.to_dict(experiment), "seeds": own.pop("seeds", experiment.seeds)}
    merged["train"] = {**merged["train"], **own}
    try:
        changed = strict.build(Experiment, merged)
        config.check(changed)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return changed.train, changed.seeds


def _rates(experiment: Experiment, variant: Variant, arch_config: Mapping[str, Any]) -> tuple[float, ...]:
    if experiment.lr_grid:
        return tuple(sorted(set(experiment.lr_grid)))
    rate = experiment.lr if experiment.lr is not None else arch_config.get("learning_rate")
    if rate is None or rate <= 0:
        raise UserError(
            f"{variant.label} declares no learning rate above 0, got {rate}; set lr, or learning_rate in its Config"
        )
    return (rate,)
