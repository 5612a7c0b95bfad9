"""A profile from end to end: plan, predict, measure what the ledger lacks, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import yaml
from rich.console import Console

from experiments import ledger, provenance, resources, strict
from experiments.cell import Cell
from experiments.errors import UserError
from experiments.ledger import Ledger
from experiments.profile import config, plan, rows
from experiments.profile.board import Board
from experiments.profile.config import Profile
from experiments.profile.point import Point
from experiments.profile.sources import digest
from experiments.profile.study import PLAN, Plan, Study, read_records
from experiments.profile.worker import work
from experiments.scheduler import Job, Limits, Scheduler

RETRY = ("failed", "oom", "timeout", "stale")
PREDICTION_TIMEOUT = 3600.0


class Book(Ledger):
    """The ledger of a profile."""

    def claim_profile(self, profile: Profile) -> None:
        """Write experiment.yaml. Raises UserError where the folder belongs to something else."""
        path, after = self.folder / "experiment.yaml", config.to_dict(profile)
        if path.exists():
            before = yaml.safe_load(path.read_text(encoding="utf-8"))
            if not isinstance(before, Mapping) or "contexts" not in before:
                raise UserError(f"{self.folder} holds no profile: choose another --out, or delete that folder")
        ledger.write_text(path, yaml.safe_dump(after, sort_keys=False, allow_unicode=True))

    def records(self) -> dict[str, dict[str, Any]]:
        """Every readable record by its key."""
        return read_records(self.cells)


class Runner(Scheduler):
    """Runs points as the scheduler of cells runs cells."""

    def _obituary(self, job: Job) -> dict[str, Any]:
        """The record of a point that could not write its own; what it had told by then is kept."""
        point, (status, reason) = cast(Point, job.cell), self._verdict(job)
        told = self.book.status(point.key)
        return {
            "version": ledger.VERSION,
            "key": point.key,
            "kind": point.kind,
            "status": status,
            "reason": reason.replace("--retry timeout continues it", "--retry timeout tries it again"),
            "cell": point.to_json(),
            "memory_limit": self.limits.memory,
            "result": told.get("result"),
            "environment": provenance.environment(),
            "sources": digest(point.arch),
            "log": f"cells/{point.key}.log",
            "started": job.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(job.seconds, 3),
        }


def run(profile: Profile, folder: Path, retry: Sequence[str] = (), console: Console | None = None) -> int:
    """Run or continue a profile in a folder; the exit status: 0 every point ended, 1 some failed, 130 interrupted."""
    console = console or Console()
    for word in retry:
        if word not in RETRY:
            raise UserError(f"unknown status to retry {word!r}: {strict.nearest(word, RETRY)}")
    with console.status("sizing the architectures"):
        found = plan.items(profile)
        resolved = Plan(
            found,
            plan.predictions(profile, found),
            plan.measurements(profile, found),
            traced=plan.traced(profile, found),
        )
    book = Book(folder)
    with book.locked():
        book.claim_profile(profile)
        sweep = _Sweep(profile, resolved, book, console, set(retry))
        try:
            return sweep.run()
        except KeyboardInterrupt:
            sweep.report()
            console.print(f"\ninterrupted with {len(book.records())} points recorded; the same command continues")
            return 130


class _Sweep:
    """One pass over a profile in a locked folder."""

    def __init__(self, profile: Profile, resolved: Plan, book: Book, console: Console, retry: set[str]) -> None:
        self.profile, self.plan, self.book, self.console = profile, resolved, book, console
        self.done = {key for key, record in book.records().items() if not _wanted_again(record, retry)}

    def run(self) -> int:
        ledger.write_json(self.book.folder / PLAN, self.plan.to_json())
        with Board(self.console) as board:
            pending = [point for point in self.plan.predicted if point.key not in self.done]
            board.expect(pending, self._jobs())
            board.expect([point for point in self.plan.measured if point.key not in self.done], 1)
            if pending:
                self._runner(board, self._jobs(), PREDICTION_TIMEOUT, None).run(cast(list[Cell], pending))
            self._measure(board)
            if self.profile.frontier and not self.profile.predict and self.profile.memory_limit not in ("auto", "none"):
                for point in self.plan.predicted:
                    self._confirm(point, board)
            for point in self.plan.traced:
                self._run_one(point, board)
        return self.report()

    def _measure(self, board: Board) -> None:
        """One point at a time with all threads; each may make the longer ones needless."""
        for point in self.plan.measured:
            if point.key not in self.done and rows.stopped(point, self._read().rows):
                board.skipped(point)
            else:
                self._run_one(point, board)

    def _confirm(self, predicted: Point, board: Board) -> None:
        """Measure where the frontier of a series was predicted, and on the side that this leaves open."""
        while (found := self._read().frontier(predicted)) and (context := found.next):
            point = plan.trial(self.profile, predicted, context)
            self.plan.trials.append(point)
            self._run_one(point, board)
            ledger.write_json(self.book.folder / PLAN, self.plan.to_json())

    def _run_one(self, point: Point, board: Board) -> None:
        if point.key in self.done:
            return
        board.expect([point], 1)
        self._runner(board, 1, self.profile.timeout, self._memory(point)).run(cast(list[Cell], [point]))
        self.done.add(point.key)

    def _runner(self, board: Board, jobs: int, timeout: float, memory: int | None) -> Runner:
        threads = max(1, resources.cores() // jobs)
        limits = Limits(jobs=jobs, threads=threads, timeout=timeout, memory=memory)
        return Runner(self.book, limits, work, cast(Any, board))

    def _jobs(self) -> int:
        return resources.default_jobs()

    def _memory(self, point: Point) -> int | None:
        setting = self.profile.memory_limit
        return None if point.device == "cuda" and setting == "auto" else resources.memory_limit(setting, 1)

    def _read(self) -> Study:
        return Study(self.profile, self.plan, self.book.records())

    def report(self) -> int:
        """Write what is known and show it; the exit status."""
        # Imported here: it takes a second that no child should pay.
        from experiments.profile import curves, report

        study = self._read()
        report.write(self.book.folder, study)
        curves.write(self.book.folder, study.rows)
        report.show(self.book.folder, study, self.console)
        return 1 if any(record["status"] == "failed" for record in study.wanted) else 0


def _wanted_again(record: Mapping[str, Any], retry: set[str]) -> bool:
    stale = "stale" in retry and record.get("sources") != digest(record["cell"]["arch"])
    return record["status"] in retry or stale
