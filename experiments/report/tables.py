"""The report's tables: each function gives lines of Markdown, none where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.report import stats, units
from experiments.report.costs import GROWING, expense, growing, out_of_memory, points
from experiments.report.records import Entry
from experiments.report.study import Contest, Study
from experiments.report.units import NOTHING, code, count, listing, plus_minus, score, short, size, text

COSTS: dict[str, tuple[str, Callable[[float | None], str]]] = {
    "train_tokens_per_second": ("train tokens/s", short),
    "prefill_tokens_per_second": ("prefill tokens/s", short),
    "decode_tokens_per_second": ("decode tokens/s", short),
    "peak_bytes": ("peak memory", size),
    "state_bytes": ("state", size),
}
WORDS = {"token_accuracy": "accuracy"}
"""Shorter names of metrics, over columns."""
BUDGETS = {
    "parameters": "parameters without embedding and readout",
    "flops": "FLOPs per token",
    "state": "bytes of state",
}
OUTCOMES: dict[stats.Outcome, str] = {
    "different": "different",
    "uncorrected": "only before correction",
    "small": f"by less than {stats.MARGIN:g}",
    "level": "not distinguishable",
}


class Cell(NamedTuple):
    """What stands in a table, and what must be said beside it."""

    value: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.note.replace(' ', units.TIED)})" if self.note else self.value


def results(contest: Contest) -> tuple[list[str], dict[str, list[Cell]]]:
    """Header and rows of a task's main table, as plain text; one row per variant with a record."""
    header: list[str] = []
    columns: list[dict[str, Cell]] = []
    for title, metric, lengths in _scored(contest):
        header.append(title)
        columns.append(_scores(contest, metric, lengths))
    if contest.solvable:
        header.append("steps to solve")
        columns.append({label: _solved(runs) for label, runs in contest.runs.items()})
    for name, (title, written) in COSTS.items():
        header.append(title)
        columns.append(_costs(contest, name, written))
    header.append("parameters")
    current = {entry.label for entry in contest.entries if entry.stale is None}
    columns.append({label: Cell(count(_parameters(contest, label))) for label in current})
    labels = [label for label in contest.labels if any(entry.label == label for entry in contest.entries)]
    blank = {label: Cell(NOTHING if label in current else "stale") for label in labels}
    return header, {label: [column.get(label, blank[label]) for column in columns] for label in labels}


def _scored(contest: Contest) -> list[tuple[str, str, list[int]]]:
    """Title, metric and lengths of the columns with scores."""
    if not contest.lengths:
        return []
    name = WORDS.get(contest.metric, units.metric(contest.metric).name)
    trained = f",{units.TIED}".join(map(str, contest.trained))
    found = [(f"{name} at {trained}", contest.metric, contest.trained)]
    if contest.beyond is not None:
        found.append((f"{name} at {contest.beyond}", contest.metric, [contest.beyond]))
    if contest.solvable and contest.metric != "exact_match":
        found.append((f"exact match at {trained}", "exact_match", contest.trained))
    return found


def _scores(contest: Contest, metric: str, lengths: Sequence[int]) -> dict[str, Cell]:
    """Per variant, mean and interval; how many seeds, where that is not as many as others have; else how it ended."""
    cells = {label: Cell(_ended(entries)) for label, entries in contest.broken.items()}
    for label, row in contest.scores(metric, lengths).items():
        few = units.plural(len(row), "seed") if len(row) < contest.seeds else ""
        cells[label] = Cell(plus_minus(stats.interval(list(row.values()))), few)
    return cells


def _ended(entries: Iterable[Entry]) -> str:
    return ", ".join(dict.fromkeys(entry.status for entry in entries))


def _solved(runs: Sequence[Entry]) -> Cell:
    """The mean over the seeds that solved the task, and how many those are where not all did."""
    known = [steps for entry in runs if (steps := entry.number("quality", "steps_to_solve")) is not None]
    if not known:
        return Cell("never")
    return Cell(count(sum(known) / len(known)), f"{len(known)} of {len(runs)}" if len(known) < len(runs) else "")


def _costs(contest: Contest, name: str, written: Callable[[float | None], str]) -> dict[str, Cell]:
    """Per variant, one cost; marked where a slow fallback ran, and how the measurement ended where it gave none."""
    current = [entry for entry in contest.entries if entry.kind == "cost" and entry.stale is None]
    ended = {entry.label: Cell(entry.status) for entry in current if not entry.usable}
    known = {label: Cell(written(expense(entry, name)), entry.fallback or "") for label, entry in contest.costs.items()}
    return ended | known


def _parameters(contest: Contest, label: str) -> float | None:
    paths = (("quality", "parameters"), ("cost", "parameters"), ("matching", "parameters"))
    own = [entry for entry in contest.entries if entry.label == label and entry.stale is None]
    return next((found for entry in own for path in paths if (found := entry.number(*path)) is not None), None)


def main(contest: Contest) -> list[str]:
    """The main table in Markdown."""
    header, rows = results(contest)
    cells_of = [[code(label), *(text(str(cell)) for cell in cells)] for label, cells in rows.items()]
    alone = ["One seed each, so there are no intervals.", ""] if contest.seeds == 1 else []
    return [*alone, *units.table(["architecture", *header], cells_of)]


def by_length(contest: Contest) -> list[str]:
    """The headline at every tested length; those of training are in bold."""
    if len(contest.lengths) < 2 or not contest.runs:
        return []
    header = [units.metric(contest.metric).name]
    header += [f"**{length}**" if length in contest.trained else str(length) for length in contest.lengths]
    cells = [_scores(contest, contest.metric, [length]) for length in contest.lengths]
    rows = [[code(label), *(str(cell.get(label, NOTHING)) for cell in cells)] for label in contest.runs]
    return units.table(header, rows)


def pairs(found: Sequence[stats.Pair]) -> list[str]:
    """Differences of every pair with interval and p values."""
    header = ["pair", "difference", "95 % interval", "p", "p, Holm", "verdict"]
    rows = []
    for pair in found:
        difference, half = pair.difference.mean, pair.difference.half or 0.0
        rows.append(
            [
                f"{code(pair.first)} minus {code(pair.second)}",
                score(difference),
                f"{score(difference - half)} to {score(difference + half)}",
                units.p_value(pair.p),
                units.p_value(pair.adjusted),
                OUTCOMES[pair.verdict],
            ]
        )
    return units.table(header, rows) if rows else []


def memory(contests: Iterable[Contest]) -> list[str]:
    """State and saved activations at the shortest and longest context, and the exponent of their growth."""
    return [line for tasks, contest in growing(contests).items() for line in _memory(tasks, contest)]


def _memory(tasks: str, contest: Contest) -> list[str]:
    found = {label: [points(entry, name) for name in GROWING] for label, entry in contest.costs.items()}
    contexts = [context for lines in found.values() for line in lines for context, _ in line]
    first, last = min(contexts), max(contexts)
    rows = [
        [code(label), *(cell for line in lines for cell in _growth(line, first, last))]
        for label, lines in found.items()
        if any(lines)
    ]
    ends = [f"at {count(first)}", f"at {count(last)}", "growth"]
    header = [f"{title} {end}" for title in ("state", "activations") for end in ends]
    ran_out = {label: at for label, entry in contest.costs.items() if (at := out_of_memory(entry)) is not None}
    notes = [f"{code(label)} ran out of memory at a context of {count(at)}." for label, at in ran_out.items()]
    return [*units.table([tasks, *header], rows), *(line for note in notes for line in (note, ""))]


def _growth(known: Sequence[tuple[float, float]], first: float, last: float) -> list[str]:
    """Sizes at two contexts, and the exponent."""
    ends = [size(found) if (found := dict(known).get(context)) is not None else NOTHING for context in (first, last)]
    exponent = f"L^{stats.growth(known):.2f}".replace("-", units.MINUS) if len(known) > 1 else NOTHING
    return [*ends, exponent]


def matching(study: Study) -> list[str]:
    """How each variant meets the budget; tasks in which it is the same share a row."""
    by = study.experiment.budget.by
    rows: dict[tuple[str, ...], list[str]] = {}
    for (label, task), row in study.matching.items():
        solved = row.get("matching", "solved") or {}
        met = [count(row.number("matching", "value")), units.percent(row.number("matching", "deviation"))]
        cells = (
            code(label),
            text(", ".join(f"{name} {value}" for name, value in solved.items())) or NOTHING,
            *(met if by in BUDGETS else []),
            *([] if by == "parameters" else [count(row.number("matching", "core_parameters"))]),
            count(row.number("matching", "parameters")),
        )
        rows.setdefault(cells, []).append(code(task))
    header = ["architecture", "tasks", "solved for", *([BUDGETS[by], "deviation"] if by in BUDGETS else [])]
    header += [*([] if by == "parameters" else [BUDGETS["parameters"]]), "all parameters"]
    cells_of = [[label, listing(tasks), *rest] for (label, *rest), tasks in rows.items()]
    return units.table(header, cells_of, left=3) if rows else []


def settings(study: Study) -> list[str]:
    """Learning rate and configuration of each variant; tasks in which they are the same share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for contest in study.contests:
        for label, rate in contest.rates.items():
            entry = next(entry for entry in contest.trains if entry.label == label)
            held = (entry.get("cell", "arch_config") or {}).items()
            written = ", ".join(f"{name} {value}" for name, value in held if name != "learning_rate")
            cells = (code(label), units.rate(rate), text(written) or NOTHING)
            rows.setdefault(cells, []).append(code(contest.task))
    header = ["architecture", "tasks", "learning rate", "settings"]
    cells_of = [[label, listing(tasks), *rest] for (label, *rest), tasks in rows.items()]
    return units.table(header, cells_of, left=4) if rows else []
