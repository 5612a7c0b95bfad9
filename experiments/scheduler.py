"""Cells -> records: each cell in a process of its own, which may be killed at any moment and always ends in a record.

Processes come from a fork server that has torch and lightning loaded: 0.2 s a start instead of 3. They are stopped by
SIGKILL alone: a cell resumes from its checkpoint, while SIGTERM would only let it record that it had failed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerProcess
from types import ModuleType
from typing import Any, Protocol

from experiments import endings, ledger, provenance
from experiments.cell import Cell
from experiments.ledger import Ledger

Work = Callable[..., None]
"""worker.work(cell_json, folder, threads, memory_limit, keep_checkpoint): runs one cell and writes its record."""
TICK = 0.25
"""Seconds between two looks at the status files and the clock."""
_PRELOADED = ["experiments.preload"]


class Board(Protocol):
    """Who is told how it goes."""

    def started(self, cell: Cell) -> None:
        """A process was started for this cell."""

    def progress(self, status: dict[str, dict[str, Any]]) -> None:
        """Key of every running cell -> what it last told, see `Ledger.status`."""

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        """The cell has a record now."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What each of the cells that run at a time may use."""

    jobs: int
    """Cells at a time."""
    threads: int
    """Per cell."""
    timeout: float
    """Seconds."""
    memory: int | None = None
    """Bytes of private memory; None = no limit."""
    gpus: tuple[str, ...] = ()
    """What CUDA_VISIBLE_DEVICES is for each job in turn; none = every cell sees all that there are."""


@dataclass
class Job:
    """A cell that runs."""

    cell: Cell
    process: ForkServerProcess
    slot: int
    before: int | None
    """Identity of the record that a retry replaces."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: float = field(default_factory=time.monotonic)
    timed_out: bool = False

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self.begun


class Scheduler:
    """Runs cells into a ledger.

    matching: of a cell, for its record; the cell itself does not know the budget.
    """

    def __init__(
        self,
        book: Ledger,
        limits: Limits,
        work: Work,
        board: Board,
        matching: Callable[[Cell], Any] = lambda cell: None,
        keep_checkpoints: bool = False,
    ) -> None:
        self.book, self.limits, self.work, self.board = book, limits, work, board
        self.matching, self.keep_checkpoints = matching, keep_checkpoints
        self.jobs: dict[str, Job] = {}

    def run(self, cells: Iterable[Cell]) -> None:
        """Run all of them, `jobs` at a time.

        Raises KeyboardInterrupt after Ctrl-C, and OSError where the ledger cannot be written; no process is left then.
        """
        pending = deque(cells)
        with deferred_interrupt() as interrupted:
            try:
                while (pending or self.jobs) and not interrupted.is_set():
                    while pending and len(self.jobs) < self.limits.jobs:
                        self._start(pending.popleft())
                    self._look()
            finally:
                self._stop()
        if interrupted.is_set():
            raise KeyboardInterrupt

    def _start(self, cell: Cell) -> None:
        slot = next(slot for slot in range(self.limits.jobs) if slot not in {job.slot for job in self.jobs.values()})
        gpus = self.limits.gpus
        context = multiprocessing.get_context("forkserver")
        process = context.Process(
            target=_live,
            args=(gpus[slot % len(gpus)] if gpus else None, self.work, cell.to_json(), str(self.book.folder)),
            kwargs={
                "threads": self.limits.threads,
                "memory_limit": self.limits.memory,
                "keep_checkpoint": self.keep_checkpoints,
            },
            name=cell.key,
        )
        self.book.status_path(cell.key).unlink(missing_ok=True)
        before = _identity(self.book, cell)
        with _nothing_to_import():
            _ensure_fork_server()
            process.start()
        self.jobs[cell.key] = Job(cell, process, slot, before)
        self.board.started(cell)

    def _look(self) -> None:
        """Wait for an end or a tick; settle what has ended, kill what takes too long, show the rest."""
        wait([job.process.sentinel for job in self.jobs.values()], timeout=TICK)
        for job in list(self.jobs.values()):
            if job.process.is_alive() and job.seconds > self.limits.timeout:
                job.timed_out = True
                job.process.kill()
                job.process.join()
            if not job.process.is_alive():
                self._settle(job)
        self.board.progress({key: self.book.status(key) for key in self.jobs})

    def _settle(self, job: Job) -> None:
        """Make sure that the ended process left a record, and complete it."""
        job.process.join()
        path = self.book.record_path(job.cell.key)
        record = ledger.read_record(path) if _identity(self.book, job.cell) != job.before else None
        record = {**(record or self._obituary(job)), "matching": self.matching(job.cell)}
        ledger.write_json(path, record)
        self.book.status_path(job.cell.key).unlink(missing_ok=True)
        del self.jobs[job.cell.key]
        job.process.close()
        self.board.ended(job.cell, record)

    def _obituary(self, job: Job) -> dict[str, Any]:
        """The record of a cell that could not write its own."""
        cell, (status, reason) = job.cell, self._verdict(job)
        return {
            "version": ledger.VERSION,
            "key": cell.key,
            "kind": cell.kind,
            "status": status,
            "reason": reason,
            "cell": cell.to_json(),
            "environment": provenance.environment(),
            "sources": provenance.sources(cell.arch, cell.task),
            "log": f"cells/{cell.key}.log",
            "started": job.started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(job.seconds, 3),
        }

    def _verdict(self, job: Job) -> tuple[str, str]:
        """Status and reason, from how the process ended."""
        code = job.process.exitcode
        told = self.book.status(job.cell.key)
        reached = f" at step {told['step']} of {told['steps']}" if {"step", "steps"} <= told.keys() else ""
        if job.timed_out:
            after = f"stopped after {self.limits.timeout:g} s{reached}"
            return "timeout", f"{after}; --retry timeout continues it, given a longer --timeout"
        if code == -signal.SIGKILL:
            return "oom", f"killed by the system{reached}, as it does when memory runs short"
        words = self.book.last_words(job.cell.key) or "nothing in its log"
        # C++ and OpenMP end the process themselves where memory runs out.
        status = "oom" if endings.says_out_of_memory(words) else "failed"
        if code is not None and code < 0:
            return status, f"its process was ended by {signal.Signals(-code).name}{reached}: {words}"
        return status, f"its process ended with status {code} and no record{reached}: {words}"

    def _stop(self) -> None:
        """End what still runs, unrecorded: it continues another time."""
        for job in self.jobs.values():
            job.process.kill()
        for job in self.jobs.values():
            job.process.join()
            self.book.status_path(job.cell.key).unlink(missing_ok=True)
        self.jobs.clear()


@contextmanager
def deferred_interrupt() -> Iterator[threading.Event]:
    """Within, Ctrl-C, however often, only sets the event: no process is lost between start and bookkeeping."""
    interrupted = threading.Event()
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # Python gives Ctrl-C to the main thread alone; under nohup or in the background it is nobody's.
        yield interrupted
        return
    before = signal.signal(signal.SIGINT, lambda number, frame: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


def _ensure_fork_server() -> None:
    """Start the fork server where none runs, deaf to Ctrl-C from its first moment.

    It ignores Ctrl-C itself, but only after it has loaded torch, which takes seconds; it inherits the mask at once.
    """
    forkserver.set_forkserver_preload(_PRELOADED)
    # The tracker unblocks Ctrl-C when it starts, so it goes first.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _nothing_to_import() -> Iterator[None]:
    """Hide the main module: multiprocessing would run the user's script again in every child, for nothing here."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _live(gpus: str | None, work: Work, *arguments: Any, **options: Any) -> None:
    """The child: do the work on its GPUs, deaf to Ctrl-C, for as long as the parent lives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus
    work(*arguments, **options)


def _die_with_parent() -> None:
    """PR_SET_PDEATHSIG would tell of the fork server's death, and that outlives the parent while children run."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)


def _identity(book: Ledger, cell: Cell) -> int | None:
    """Which file the record is; a rewritten one is another."""
    try:
        return book.record_path(cell.key).stat().st_ino
    except FileNotFoundError:
        return None
