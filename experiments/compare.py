"""A comparison from end to end: plan, run what the ledger lacks, report. Also what `experiments.compare(...)` calls."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from experiments import ledger, resources, strict, worker
from experiments.cell import Cell
from experiments.config import Experiment, load
from experiments.errors import UserError
from experiments.ledger import Ledger
from experiments.progress import Display, duration
from experiments.scheduler import Limits, Scheduler, Work

if TYPE_CHECKING:
    from experiments.plan import Plan

RETRY = ("failed", "oom", "nan", "timeout", "stale")
"""What `retry` may name: the ends of cells, and records of other sources."""


@dataclass(frozen=True)
class Comparison:
    """What `experiments.compare(...)` returns."""

    folder: Path
    records: list[dict[str, Any]]
    """One per cell, however it ended."""
    report: Path
    status: int
    """0 if every cell ended, 1 if some failed."""


def run(
    archs: Sequence[Any] | None = None,
    tasks: Sequence[Any] | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    config: str | None = None,
    jobs: int | None = None,
    retry: Sequence[str] = (),
    console: Console | None = None,
    **overrides: Any,
) -> Comparison:
    """Run or continue a comparison: `experiments.compare(archs=["gqa", "mamba"], tasks=["recall"], seeds=3)`.

    config: preset or YAML file, None = the defaults of Experiment; the other arguments and `overrides`, fields of
    Experiment such as train={"steps": 500}, go on top. out: runs/NAME by default. Raises UserError for a mistake in
    any of it, and KeyboardInterrupt after Ctrl-C; the same call then continues.
    """
    given = {"archs": archs, "tasks": tasks, "seeds": seeds}
    experiment = load(config, {**overrides, **{name: value for name, value in given.items() if value is not None}})
    folder = Path(out) if out is not None else Path("runs") / experiment.name
    status = compare(experiment, folder, jobs, retry=retry, console=console)
    if status == 130:
        raise KeyboardInterrupt
    return Comparison(folder, list(Ledger(folder).records().values()), folder / "report.html", status)


def compare(
    experiment: Experiment,
    out: Path,
    jobs: int | None = None,
    retry: Sequence[str] = (),
    dry_run: bool = False,
    console: Console | None = None,
    work: Work = worker.work,
) -> int:
    """Run what the folder `out` lacks of an experiment, then write and show its report.

    jobs: cells trained at a time; None = one per GPU, else one per core. retry: of RETRY, records to replace.
    dry_run: only show what would run. Returns 0 if every cell ended, 1 if some failed, 130 after Ctrl-C.
    Raises UserError for the user's mistakes, a full disk among them.
    """
    # Imported here: it brings torch.
    from experiments.plan import plan

    console = console or Console()
    for word in retry:
        if word not in RETRY:
            raise UserError(f"unknown status to retry {word!r}: {strict.nearest(word, RETRY)}")
    machine = Machine.of(experiment, jobs)
    try:
        with console.status("sizing the architectures"):
            planned = plan(experiment)
        if dry_run:
            return _show(planned, Ledger(out), machine, console)
        with _one_sentence(out), Ledger(out).locked():
            return _Run(experiment, planned, Ledger(out), machine, console, work).run(set(retry))
    except KeyboardInterrupt:
        recorded = len(list((out / "cells").glob("*.json")))
        console.print(f"\ninterrupted with {recorded} cells recorded; the same command continues", highlight=False)
        return 130


@dataclass(frozen=True)
class Machine:
    """How the cells share the machine."""

    jobs: int
    gpus: tuple[str, ...]
    """Those of each job, as CUDA_VISIBLE_DEVICES names them; none on a machine without."""
    devices: int
    """Processes that one cell trains with."""
    memory: str

    @classmethod
    def of(cls, experiment: Experiment, jobs: int | None) -> Machine:
        """For an experiment. Raises UserError for a memory limit or number of jobs that is none."""
        resources.memory_limit(experiment.memory_limit, 1)
        if jobs is not None and jobs < 1:
            raise UserError(f"jobs must be at least 1, got {jobs}")
        train = experiment.train
        gpus = resources.groups(resources.visible_gpus(train.accelerator), train.devices)
        default = len(gpus) or resources.default_jobs(train.devices)
        return cls(jobs or default, gpus, train.devices, experiment.memory_limit)

    def limits(self, jobs: int, timeout: float) -> Limits:
        """Of each cell, with so many at a time."""
        # CUDA reserves address space far beyond what it uses, so only a limit that was asked for holds there.
        limited = not (self.gpus and self.memory == "auto")
        return Limits(
            jobs=jobs,
            threads=max(1, resources.cores() // jobs),
            timeout=timeout,
            memory=resources.memory_limit(self.memory, jobs * self.devices) if limited else None,
            gpus=self.gpus,
        )


class _Run:
    """One pass over an experiment in a locked folder."""

    def __init__(
        self, experiment: Experiment, plan: Plan, book: Ledger, machine: Machine, console: Console, work: Work
    ) -> None:
        self.experiment, self.plan, self.book, self.machine = experiment, plan, book, machine
        self.console, self.work = console, work

    def run(self, retry: set[str]) -> int:
        """Bring the ledger up to date, then the report; the exit status."""
        self.book.claim(self.experiment)
        superseded = self.book.supersede(self.plan.possible())
        records = self.book.records()
        ledger.write_json(self.book.folder / "matching.json", [entry.matching for entry in self.plan.entries])
        self._tell_set_aside(superseded)
        again = {key for key, record in records.items() if _wanted_again(record, retry)}
        self._run_cells(records, again)
        return self._close()

    def _run_cells(self, records: dict[str, dict[str, Any]], again: set[str]) -> None:
        """All passes; a later one may depend on the records of an earlier one."""

        def lacking(cells: list[Cell]) -> list[Cell]:
            return [cell for cell in cells if cell.key in again or cell.key not in records]

        first, cost = lacking(self.plan.first()), lacking(self.plan.cost())
        if first or cost:
            self._tell_plan()
        with Display(self.console, self._describe) as display:
            display.expect(first, self.machine.jobs)
            display.expect(cost, 1)
            self._schedule(first, self.machine.jobs, display)
            rest = lacking(self.plan.rest(self.book.records()))
            display.expect(rest, self.machine.jobs)
            self._schedule(rest, self.machine.jobs, display)
            self._schedule(cost, 1, display)

    def _schedule(self, cells: list[Cell], jobs: int, display: Display) -> None:
        if not cells:
            return
        scheduler = Scheduler(
            self.book,
            self.machine.limits(jobs, self.experiment.timeout),
            self.work,
            display,
            matching=lambda cell: self.plan.entry(cell).matching,
            keep_checkpoints=self.experiment.keep_checkpoints,
        )
        scheduler.run(cells)

    def _close(self) -> int:
        """Write the report, show it, and say what to type next."""
        # Imported here: it takes a second that no other command should pay.
        from experiments import report, tensorboard

        folder, records = self.book.folder, self.book.records()
        report.write(folder)
        tensorboard.write_overview(folder)
        self.console.print(report.table(folder))
        self._tell_ends(records)
        self._say(f"report   {folder / 'report.html'}")
        self._say(f"curves   archlab tensorboard {folder}")
        return 1 if any(record["status"] == "failed" for record in records.values()) else 0

    def _describe(self, cell: Cell, record: dict[str, Any]) -> str:
        """What to say of a record that is done."""
        if cell.kind == "cost":
            speed = (record.get("cost", {}).get("train_tokens_per_second") or {}).get("median")
            return "" if speed is None else f"{speed:,.0f} train tokens/s"
        score = self.plan.entry(cell).score
        value = score.value(record)
        return "" if value is None else f"validation {score.metric} {value:.3f} at trained lengths"

    def _tell_plan(self) -> None:
        from experiments.tables import plan_table

        self.console.print(plan_table(self.plan))

    def _tell_set_aside(self, superseded: list[Path]) -> None:
        for path in self.book.set_aside:
            self._say(f"unreadable record set aside as {path.name}; its cell runs again")
        if superseded:
            self._say(f"{len(superseded)} records of an earlier version of the experiment's code set aside in cells/")

    def _tell_ends(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        from experiments.tables import counts

        self._say(f"cells    {counts(records)}")
        for status in ("failed", "stale"):
            found = sum(_wanted_again(record, {status}) for record in records.values())
            if found:
                self._say(f"         {found} {status}: --retry {status} runs them again")

    def _say(self, line: str) -> None:
        self.console.print(escape(line), highlight=False, soft_wrap=True)


def _wanted_again(record: Mapping[str, Any], retry: set[str]) -> bool:
    return record["status"] in retry or ("stale" in retry and ledger.is_stale(record))


def _show(plan: Plan, book: Ledger, machine: Machine, console: Console) -> int:
    """The dry run: cells, parameters, and an estimate from one measured step of each."""
    from rich.progress import track

    from experiments.estimate import step_seconds
    from experiments.tables import plan_table, total_seconds

    threads = max(1, resources.cores() // machine.jobs)
    entries = track(plan.entries, "measuring a training step of each", console=console, transient=True)
    steps = {index: step_seconds(entry, threads) for index, entry in enumerate(entries)}
    console.print(plan_table(plan, steps))
    cells = sum(entry.trainings for entry in plan.entries)
    training = duration(total_seconds(plan, steps, machine.jobs))
    recorded = len(plan.possible() & {path.stem for path in book.cells.glob("*.json")})
    console.print(
        f"{cells} trainings and {len(plan.entries)} measurements of cost, {recorded} of them recorded already; "
        f"training alone takes about {training}, {machine.jobs} cells at a time",
        highlight=False,
        soft_wrap=True,
    )
    return 0


@contextmanager
def _one_sentence(out: Path) -> Iterator[None]:
    """What the file system refuses is the user's to mend."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"the disk is full: free some space for {out}; the same command then continues") from error
        raise UserError(f"cannot work in {out}: {error}; give a folder that can be written") from error


class _CallableModule(ModuleType):
    """`experiments.compare` is this module, and calling it runs a comparison."""

    def __call__(self, *arguments: Any, **options: Any) -> Comparison:
        return run(*arguments, **options)


sys.modules[__name__].__class__ = _CallableModule
