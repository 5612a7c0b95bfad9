"""The report of an experiment, from its ledger alone: Markdown, a self-contained page, a table of numbers, figures.

write(folder)   report.md  report.html  results.csv  figures/*.png, *.svg
table(folder)   what the terminal shows
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import ledger
from experiments.report import origin, tables, units, verdict
from experiments.report.records import Entry
from experiments.report.study import Contest, Study, read
from experiments.report.units import TIED, code

if TYPE_CHECKING:
    from rich.table import Table

CAPTIONS = {
    "quality": "Scores of every variant: ticks are seeds, the marker their mean, the bar its 95 % interval.",
    "learning": "Validation score at trained lengths while training: means over seeds, bands from worst to best. "
    "A line ends where every seed has solved the task; a run that stopped earlier keeps its last score.",
    "rates": "Validation score at trained lengths for each learning rate, with seed 0; the selected one is ringed.",
    "length": "Test score against length: means over seeds, bands from worst to best. In the tables, lengths up to the "
    "longest in training are bold.",
    "memory": "Bytes against context for one sequence, both axes logarithmic, with the exponent of the power law "
    "fitted to each line: 0 is constant, 1 linear, 2 quadratic.",
    "tradeoff": "Score at trained lengths against cost; hollow markers ran on a slow fallback.",
    "alignment": "Attention of each target token over the source, on one validation example: white is 0, full "
    "colour the panel's largest weight, named above it. Variants without attention have no panel.",
}
METHOD = """
- **Intervals** are 95 % t intervals of the mean over seeds (`mean ± half width`); with one seed there is none.
- **Comparisons** are paired by seed, since runs of one seed see the same examples: Student's paired t test (Biometrika
  1908), two-sided at 5 %, with Holm's correction (Scand. J. Statist. 1979) for all pairs of a task at one score. *Not
  distinguishable* means that these seeds cannot tell, not that two architectures are equal. A mean difference below
  0.01 is no win: training stops when a task is solved, so little lies between those that solve it. One seed gives no
  verdict (Bouthillier et al., MLSys 2021).
- **Scores** are of test examples. *At trained lengths* is the mean over the tested lengths up to the longest in
  training; longer ones are extrapolation. Variants with a run that did not end well take no part in a verdict.
- **Costs** come from one short measurement per variant after training, alone on the machine: the median of repeated
  timings. Tokens are source and target tokens together. *Peak memory* is that of a training step above what the
  process held before; *state* is what one sequence keeps for decoding after the longest trained source.
- **Stale** records were computed by other sources than today's; they are listed and enter nothing else. Runs whose
  data differ by their fingerprints share no table.
"""


def write(folder: Path) -> Path:
    """Write everything; the path of report.html.

    Raises UserError where the folder holds no experiment.
    """
    # Imported here: the terminal's table needs no matplotlib.
    from experiments.report import figures, html, style

    study = read(folder)
    drawn = figures.draw(study)
    figures.save(drawn, folder / "figures")
    markdown = compose(study, drawn.keys())
    colours = {label: look.colour for label, look in style.looks(study.archs).items()}
    ledger.write_text(folder / "results.csv", results(study))
    ledger.write_text(folder / "report.md", markdown)
    ledger.write_text(folder / "report.html", html.page(markdown, folder, colours))
    return folder / "report.html"


def table(folder: Path) -> Table:
    """The main columns of every task, for the terminal. Raises UserError where the folder holds no experiment."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    study = read(folder)
    title = f"{study.experiment.name}: mean ± 95 % interval over seeds"
    shown = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1))
    shown.add_column("architecture", overflow="fold", min_width=len("architecture"))
    for name in ("trained lengths", "longest", "train tok/s", "decode tok/s", "peak memory", "state"):
        shown.add_column(name, justify="right", min_width=min(8, len(name)))
    rows = {contest.task: list(_short_rows(contest)) for contest in study.contests}
    shown.caption = _legend(cell for found in rows.values() for row in found for cell in row)
    for contest in study.contests:
        note = "no table: the data differ" if contest.refusal else units.metric(contest.metric).name
        shown.add_row(Text(contest.task, "bold"), note, units.plural(contest.seeds, "seed"))
        for row in rows[contest.task]:
            shown.add_row(*map(Text, row))
        shown.add_section()
    return shown


def _short_rows(contest: Contest) -> Iterator[list[str]]:
    """Label, both scores and four costs of each variant; none where the runs share no table."""
    if contest.refusal:
        return
    header, rows = tables.results(contest)
    scores = [place for place, name in enumerate(header) if " at " in name and "exact" not in name][:2]
    costs = [header.index(title) for name, (title, _) in tables.COSTS.items() if not name.startswith("prefill")]
    for label, cells in rows.items():
        known = [_short(cells[place], "*" if contest.seeds > 1 else "") for place in scores]
        blank = [units.NOTHING] * (2 - len(known))
        yield [label, *known, *blank, *(_short(cells[place], "†") for place in costs)]


def _legend(cells: Iterable[str]) -> str | None:
    """What the marks that occur mean."""
    ends = {cell[-1:] for cell in cells}
    marks = {"*": "* of fewer seeds", "†": "† on a slow fallback"}
    return "   ".join(meaning for mark, meaning in marks.items() if mark in ends) or None


def _short(cell: tables.Cell, mark: str) -> str:
    return cell.value.replace(f"{TIED}±{TIED}", "±").replace(TIED, " ") + (mark if cell.note else "")


def compose(study: Study, figures: Iterable[str] = ()) -> str:
    """report.md. figures: the names of those in figures/."""
    drawn = set(figures)
    lines = [f"# {units.text(study.experiment.name)}: architectures head to head", ""]
    lines += [line for term in verdict.terms(study) for line in (f"> - {term}",)] + [""]
    for title, body in _sections(study, drawn).items():
        if any(body):
            lines += [f"## {title}", "", *body]
    return "\n".join(lines) + "\n"


def _sections(study: Study, drawn: set[str]) -> dict[str, list[str]]:
    comparable = [contest for contest in study.contests if not contest.refusal]
    per_task = {
        "Results": tables.main,
        "Length": tables.by_length,
        "Pairs": _pairs,
    }
    tasks = {name: _by_task(comparable, lines) for name, lines in per_task.items()}
    return {
        "Verdict": [*_verdict(study), *_figure("quality", drawn)],
        "Results": [*tasks["Results"], *_refused(study)],
        "Learning curves": [*_figure("learning", drawn), *_figure("rates", drawn)],
        "Length": [*_figure("length", drawn), *tasks["Length"]],
        "Memory": [*_figure("memory", drawn), *tables.memory(comparable)],
        "Cost": _figure("tradeoff", drawn),
        "Profile": _profile(study.folder / "profile"),
        "Attention": _figure("alignment", drawn),
        "Pairs": tasks["Pairs"],
        "Budget": [*tables.matching(study), *tables.settings(study)],
        "Failures": [*origin.troubles(study), *origin.missing(study)],
        "Stale records": origin.stale(study),
        "Environment": [*origin.environments(study), *origin.ran(study), *origin.data(study)],
        "Run it again": origin.again(study),
        "Method": [*METHOD.strip().splitlines(), ""],
    }


def _verdict(study: Study) -> list[str]:
    lines = ["*Not all of the experiment is recorded yet: this is where it stands.*", ""] if study.missing else []
    for contest in study.contests:
        first, *rest = verdict.verdict(contest)
        rest += [verdict.solved(contest), verdict.cheapest(contest)]
        lines += [f"- {first}", *(f"  - {sentence}" for sentence in rest if sentence)]
    return [*lines, ""] if study.entries else ["Nothing has been recorded yet, so there is nothing to conclude.", ""]


def _profile(folder: Path) -> list[str]:
    """Memory and speed against context, where `archlab profile --out DIR/profile` has measured them."""
    if not (folder / "profile.json").is_file():
        return []
    # Imported here: few reports have one.
    from experiments.profile import report

    return report.section(folder)


def _pairs(contest: Contest) -> list[str]:
    groups = [contest.trained, *([[contest.beyond]] if contest.beyond is not None else [])]
    found = {verdict.place(contest, lengths): verdict.standing(contest, lengths).pairs for lengths in groups}
    name = units.metric(contest.metric).name
    return _flat(
        [f"{name[0].upper()}{name[1:]} {where}:", "", *tables.pairs(rows)] for where, rows in found.items() if rows
    )


def _refused(study: Study) -> list[str]:
    sentences = (
        f"{code(contest.task)} has no table: {units.text(contest.refusal)}."
        for contest in study.contests
        if contest.refusal
    )
    return [line for sentence in sentences for line in (sentence, "")]


def _by_task(contests: Iterable[Contest], lines_of: Any) -> list[str]:
    """Lines under a heading for each task that has any."""
    found = {contest.task: lines_of(contest) for contest in contests}
    return _flat([f"### {units.text(task)}", "", *lines] for task, lines in found.items() if lines)


def _flat(parts: Iterable[list[str]]) -> list[str]:
    return [line for part in parts for line in part]


def _figure(name: str, drawn: set[str]) -> list[str]:
    return [f"![{name}](figures/{name}.png)", "", f"*{CAPTIONS[name]}*", ""] if name in drawn else []


def results(study: Study) -> str:
    """results.csv: one row per cell, everything that is a number in it, and what says which cell it is."""
    rows = [dict(_columns(entry)) for entry in study.entries]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)) or ["key"])
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def _columns(entry: Entry) -> Iterator[tuple[str, Any]]:
    yield from (
        ("key", entry.get("key")),
        ("kind", entry.kind),
        ("status", entry.status),
        ("stale", entry.stale or ""),
        ("architecture", entry.label),
        ("task", entry.task),
        ("seed", entry.seed),
        ("lr", entry.lr),
        ("fallback", entry.fallback or ""),
        ("fingerprint", entry.get("data", "fingerprint") or ""),
        ("reason", entry.get("reason") or ""),
        ("seconds", entry.number("seconds")),
    )
    for part in ("quality", "cost", "matching"):
        yield from _numbers(entry.get(part), part)
    for part in ("arch_config", "task_config", "train"):
        yield from _numbers(entry.get("cell", part), part)


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number below a name, dotted; rows of a list by their context, curves and pictures apart."""
    if isinstance(value, bool | int | float):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key not in ("curve", "alignment"):
                yield from _numbers(item, f"{name}.{key}")
    elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
        for number, item in enumerate(value):
            yield from _numbers(item, f"{name}.{item.get('context', number)}")
