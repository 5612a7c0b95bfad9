"""What the user sees while points run: one bar with the time left, and a line for each end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from experiments.profile.point import Point
from experiments.progress import COLOURS, duration
from experiments.report import units

WIDTH = 40
GROWTH = 2.0
"""How much longer the next context is taken to last, before anything better is known."""


class Board:
    """The scheduler's board for points; off a terminal it prints the results alone."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.waiting: dict[str, tuple[Point, int]] = {}
        self.seconds: dict[tuple[str, tuple[str, str, int]], float] = {}
        self.begun: dict[str, float] = {}
        self.ended_count = 0
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[text]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.bar = self.bars.add_task("points", total=None, text="")

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bars.stop()

    def expect(self, points: Sequence[Point], jobs: int) -> None:
        """These are still to run, `jobs` at a time."""
        self.waiting |= {point.key: (point, jobs) for point in points}

    def started(self, point: Any) -> None:
        """A process was started for it."""
        self.begun[point.key] = time.monotonic()
        self.bars.update(self.bar, description=f"{escape(point.title):<{WIDTH}}")

    def progress(self, status: dict[str, dict[str, Any]]) -> None:
        """Key of every running point -> what it last told."""
        total = self.ended_count + len(self.waiting)
        left = self._left()
        text = f"{self.ended_count}/{total}, {'time left unknown yet' if left is None else f'{duration(left)} left'}"
        self.bars.update(self.bar, total=total, completed=self.ended_count, text=text)

    def skipped(self, point: Point) -> None:
        """It is not tried."""
        self.waiting.pop(point.key, None)

    def ended(self, point: Any, record: dict[str, Any]) -> None:
        """Print the result, whatever it is."""
        seconds = time.monotonic() - self.begun.pop(point.key)
        self.seconds[point.kind, point.series] = seconds
        self.waiting.pop(point.key, None)
        self.ended_count += 1
        status = record["status"]
        said = describe(record) if status == "done" else escape(f"{record['reason']} ({record['log']})")
        self.console.print(
            f"{self.ended_count:>3}/{self.ended_count + len(self.waiting)} [{COLOURS[status]}]{status:<7}[/] "
            f"{escape(point.title):<{WIDTH}} {duration(record['seconds']):>8}  {said}",
            highlight=False,
            soft_wrap=True,
        )

    def _left(self) -> float | None:
        """Seconds until all have ended, at most; None as long as nothing is known of a series."""
        total = 0.0
        for point, jobs in self.waiting.values():
            known = self.seconds.get((point.kind, point.series))
            known = known if known is not None else _mean(self.seconds, point.kind)
            if known is None:
                return None
            total += known * (GROWTH if point.kind == "measured" else 1) / jobs
        return total


def _mean(seconds: dict[tuple[str, tuple[str, str, int]], float], kind: str) -> float | None:
    found = [value for (of, _), value in seconds.items() if of == kind]
    return sum(found) / len(found) if found else None


def describe(record: dict[str, Any]) -> str:
    """A measurement in a line; of a prediction, how many contexts it covers."""
    if record["kind"] == "predicted":
        results = record["results"]
        far = max(results, key=lambda result: result["context"])
        return f"predicted to {far['context']:,} tokens: {units.size(far['peak_bytes'])}"
    result = record["result"]
    if record["kind"] == "traced":
        return str(result["trace"])
    tracked = result.get("tracked") or {}
    peak = tracked.get("peak_bytes") or result.get("process_bytes")
    return f"{units.size(peak)}, {units.short(result['speed']['median'])} tokens/s"
