"""The tables that a comparison prints before it runs: what meets which budget how, and what it is going to take."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments.match import MET, UNITS
from experiments.plan import Entry, Plan
from experiments.progress import duration


def plan_table(plan: Plan, steps: Mapping[int, float | None] | None = None) -> Table:
    """One row per task and variant.

    steps: index of an entry -> seconds that one of its training steps takes, None where it could not be measured;
    adds a column with the time of one training.
    """
    table = Table(title=_title(plan), title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False)
    table.add_column("architecture", overflow="fold")
    for name in ("cells", "rate", "width, inner", "parameters", "off"):
        table.add_column(name, justify="right", no_wrap=True)
    if steps is not None:
        table.add_column("time each", justify="right", no_wrap=True)
    numbered = enumerate(plan.entries)
    for task, entries in itertools.groupby(numbered, lambda item: item[1].task.label):
        table.add_row(f"[bold]{escape(task)}[/]")
        for index, entry in entries:
            table.add_row(*_row(entry), *([] if steps is None else [_training(entry, steps[index])]))
        table.add_section()
    return table


def _title(plan: Plan) -> str:
    fit = plan.entries[0].match
    if fit.budget is None:
        return "sizes as given, not matched (budget.by none)"
    return f"budget: {fit.budget:,.0f} {UNITS[fit.by]}{' without embeddings and readout' * (fit.by == 'parameters')}"


def _row(entry: Entry) -> list[str]:
    return [
        escape(entry.arch.label),
        str(entry.trainings),
        _rates(entry.rates),
        _solved(entry.match.solved),
        f"{entry.match.parameters:,}",
        _deviation(entry.match.deviation),
    ]


def _rates(rates: Sequence[float]) -> str:
    return f"{rates[0]:g}" if len(rates) == 1 else f"{len(rates)}: {min(rates):g} to {max(rates):g}"


def _solved(solved: Mapping[str, int]) -> str:
    """Both values, as the column's head names them; a field that was solved alone by its own name."""
    if len(solved) == 2:
        return ", ".join(map(str, solved.values()))
    return ", ".join(f"{name} {value}" for name, value in solved.items()) or "-"


def _deviation(deviation: float | None) -> str:
    if deviation is None:
        return "-"
    return f"{deviation:+.1%}" if abs(deviation) <= MET else f"[yellow]{deviation:+.1%}[/]"


def _training(entry: Entry, step: float | None) -> str:
    return "?" if step is None else duration(step * entry.train.steps)


def total_seconds(plan: Plan, steps: Mapping[int, float | None], jobs: int) -> float:
    """Seconds of training alone that the experiment takes from its start, `jobs` cells at a time."""
    known = (
        step * entry.train.steps * entry.trainings
        for step, entry in zip(steps.values(), plan.entries, strict=True)
        if step is not None
    )
    return math.fsum(known) / jobs


def counts(records: Mapping[str, Mapping[str, Any]]) -> str:
    """`33 done, 1 oom, 1 failed`."""
    found = [record["status"] for record in records.values()]
    return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(sorted(found))) or "none"
