"""What the user sees while cells run: one bar for all with the time left, one line per running cell, one per result."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from experiments.cell import Cell

COLOURS = {"done": "green", "oom": "yellow", "nan": "yellow", "timeout": "yellow", "failed": "red"}
WIDTH = 34
"""Columns of a cell's name."""


class Clock:
    """How long cells take, learnt from those that ended."""

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)

    def learn(self, cell: Cell, seconds: float) -> None:
        """A cell of this sort took that long."""
        for sort in _sorts(cell):
            self.seconds[sort].append(seconds)

    def expect(self, cell: Cell) -> float | None:
        """Seconds that a cell will take, from the most similar ones; None as long as nothing is known."""
        known = next((self.seconds[sort] for sort in _sorts(cell) if self.seconds[sort]), None)
        if known is None:
            return 6 * cell.cost.seconds if cell.kind == "cost" else None
        return statistics.mean(known)

    def left(self, cell: Cell, seconds: float, status: dict[str, Any]) -> float | None:
        """Seconds that a cell, running for so long, will still take: by its steps, else as expected."""
        step, steps = status.get("step") or 0, status.get("steps") or 0
        if cell.kind == "train" and 0 < step <= steps:
            return seconds * (steps - step) / step
        expected = self.expect(cell)
        return None if expected is None else max(0.0, expected - seconds)


def _sorts(cell: Cell) -> list[tuple[str, ...]]:
    """Groups of similar cells, the most similar first."""
    return [(cell.kind, cell.task_label, cell.label), (cell.kind, cell.task_label), (cell.kind,)]


class Display:
    """A live display of the cells of one experiment; off a terminal it prints the results alone.

    describe: what to say of a record that is done.
    """

    def __init__(self, console: Console, describe: Callable[[Cell, dict[str, Any]], str]) -> None:
        self.console, self.describe = console, describe
        self.clock = Clock()
        self.pending: list[tuple[Cell, int]] = []
        self.running: dict[str, tuple[Cell, float, TaskID]] = {}
        self.status: dict[str, dict[str, Any]] = {}
        self.ended_count = 0
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.all = self.bars.add_task(f"{'all cells':<{WIDTH}}", total=None, text="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def expect(self, cells: Sequence[Cell], jobs: int) -> None:
        """These cells are still to run, `jobs` at a time."""
        self.pending += [(cell, jobs) for cell in cells]

    def started(self, cell: Cell) -> None:
        """A process was started for this cell."""
        self.pending = [(other, jobs) for other, jobs in self.pending if other.key != cell.key]
        bar = self.bars.add_task(f"{title(cell):<{WIDTH}}", total=None, text="starting")
        self.running[cell.key] = (cell, time.monotonic(), bar)

    def progress(self, status: dict[str, dict[str, Any]]) -> None:
        """Key of every running cell -> what it last told."""
        self.status = status
        for key, told in status.items():
            self.bars.update(
                self.running[key][2], total=told.get("steps"), completed=told.get("step") or 0, text=_told(told)
            )
        total = self.ended_count + len(self.running) + len(self.pending)
        self.bars.update(self.all, total=total, completed=self.ended_count, text=self._summary(total))

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        """Print the result, whatever it is."""
        _, begun, bar = self.running.pop(cell.key)
        self.bars.remove_task(bar)
        self.clock.learn(cell, time.monotonic() - begun)
        self.ended_count += 1
        self.console.print(self._line(cell, record), highlight=False, soft_wrap=True)

    def _line(self, cell: Cell, record: dict[str, Any]) -> str:
        total = self.ended_count + len(self.running) + len(self.pending)
        status = record["status"]
        said = self.describe(cell, record) if status == "done" else escape(f"{record['reason']} ({record['log']})")
        return (
            f"{self.ended_count:>{len(str(total))}}/{total} [{COLOURS[status]}]{status:<7}[/] "
            f"{escape(title(cell)):<{WIDTH}} {duration(record['seconds']):>8}  {said}"
        )

    def _summary(self, total: int) -> str:
        left = self._left()
        return f"{self.ended_count}/{total}, {'time left unknown yet' if left is None else f'{duration(left)} left'}"

    def _left(self) -> float | None:
        """Seconds until all cells have ended; None as long as that cannot be told."""
        now = time.monotonic()
        running = [
            self.clock.left(cell, now - begun, self.status.get(key, {}))
            for key, (cell, begun, _) in self.running.items()
        ]
        waiting = [(self.clock.expect(cell), jobs) for cell, jobs in self.pending]
        if None in running or None in (seconds for seconds, _ in waiting):
            return None
        at_work = [seconds for seconds in running if seconds is not None]
        queued = sum(seconds / jobs for seconds, jobs in waiting if seconds is not None)
        return max([sum(at_work) / max(len(at_work), 1) + queued, *at_work])


def title(cell: Cell) -> str:
    """A cell in a few words: `mamba · recall · seed 1`."""
    last = "cost" if cell.kind == "cost" else f"seed {cell.seed}"
    return f"{cell.label} · {cell.task_label} · {last}"


def duration(seconds: float) -> str:
    """H:MM:SS."""
    return str(timedelta(seconds=round(seconds)))


def _told(status: dict[str, Any]) -> str:
    if not status:
        return "starting"
    loss = status.get("loss")
    said = "" if loss is None else f", loss {loss:.3f}"
    return f"{status.get('phase', 'runs')} {status.get('step', 0)}/{status.get('steps', '?')}{said}"
