"""Figures of what architectures cost, and of what they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from experiments import report_style, report_units
from experiments.report_records import Entry
from experiments.report_stats import growth
from experiments.report_study import Contest
from experiments.report_style import Look

Looks = Mapping[str, Look]

GROWING = {"state_bytes": "state per sequence", "activation_bytes": "kept for the backward pass"}
COSTS = {
    "train_tokens_per_second": "training tokens/s",
    "decode_tokens_per_second": "generated tokens/s",
    "state_bytes": "state per sequence",
}
MOST_IDS = 20
"""More tokens than that are not named at the axes of an alignment."""


def memory(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """Bytes against context, both logarithmic, with the exponent of a power law fitted to each line."""
    shown = [contest for contest in contests if any(points(entry, "state_bytes") for entry in contest.costs.values())]
    if not shown:
        return None
    width = report_style.across(len(shown))
    figure, grid = report_style.panels(len(GROWING), len(shown), width, 2.7, sharey="row")
    labels = {label: looks[label] for label in looks if any(label in contest.costs for contest in shown)}
    for row, (name, title) in zip(grid, GROWING.items(), strict=True):
        for axes, contest in zip(row, shown, strict=True):
            _growth_panel(axes, contest, name, looks)
            axes.set_title(contest.task)
        row[0].set_ylabel(title)
    for axes in grid[-1]:
        axes.set_xlabel("context (source + target tokens)")
    # Only now are the limits known which keep the labels apart.
    figure.draw_without_rendering()
    for row, name in zip(grid, GROWING, strict=True):
        for axes, contest in zip(row, shown, strict=True):
            _name_exponents(axes, contest, name, looks, 72 / figure.dpi)
    report_style.legend(figure, labels)
    return figure


def _growth_panel(axes: Axes, contest: Contest, name: str, looks: Looks) -> None:
    contexts, sizes = {1.0}, [1.0]
    found = {label: points(entry, name) for label, entry in contest.costs.items()}
    for label, known in found.items():
        if known:
            axes.plot(*zip(*known, strict=True), **looks[label].line)
    known = [point for row in found.values() for point in row]
    if known:
        contexts, sizes = {context for context, _ in known}, [size for _, size in known]
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(min(contexts) / 1.15, max(contexts) * 1.75)
    report_style.log_ticks(axes.xaxis, sorted(contexts), report_units.tokens)
    report_style.log_ticks(axes.yaxis, report_style.powers(sizes, 2), report_units.size)


def _name_exponents(axes: Axes, contest: Contest, name: str, looks: Looks, points_per_pixel: float) -> None:
    """`L^1.0` at the end of each line, none above another."""
    ends = {label: known for label, entry in contest.costs.items() if len(known := points(entry, name)) > 1}
    heights = [axes.transData.transform(known[-1])[1] * points_per_pixel for known in ends.values()]
    for (label, known), before, after in zip(ends.items(), heights, report_style.spread(heights, 9), strict=True):
        axes.annotate(
            f"$L^{{{growth(known):.1f}}}$",
            known[-1],
            (6, after - before),
            textcoords="offset points",
            va="center",
            color=looks[label].colour,
            fontsize=8,
        )


def points(entry: Entry, name: str) -> list[tuple[float, float]]:
    """(context, bytes) of a measurement, by context; what is not known or not positive is left out."""
    rows = [Entry({"cost": row}, None) for row in entry.get("cost", "contexts") or []]
    pairs = [(row.number("cost", "context"), row.number("cost", name)) for row in rows]
    return sorted((context, size) for context, size in pairs if context and size and size > 0)


def tradeoff(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """The score at trained lengths against each cost; hollow where a slow fallback ran."""
    shown = [contest for contest in contests if contest.runs.keys() & contest.costs.keys()]
    if not shown:
        return None
    figure, grid = report_style.panels(len(shown), len(COSTS), report_style.across(len(COSTS)), 2.4, sharey="row")
    for row, contest in zip(grid, shown, strict=True):
        for axes, name in zip(row, COSTS, strict=True):
            _scatter(axes, contest, name, looks)
            axes.set_xlabel(COSTS[name])
        row[0].set_ylabel(report_units.axis_name(contest.metric))
        row[0].set_title(contest.task)
    report_style.legend(figure, {label: looks[label] for label in looks if any(label in c.costs for c in shown)})
    return figure


def _scatter(axes: Axes, contest: Contest, name: str, looks: Looks) -> None:
    found = []
    for label, scores in contest.scores(contest.metric, contest.trained).items():
        cost = expense(contest.costs[label], name) if label in contest.costs else None
        if cost:
            found.append(cost)
            style = looks[label].hollow if contest.costs[label].fallback else looks[label].point
            axes.plot([cost], [np.mean(list(scores.values()))], **{**style, "markersize": 8})
    bounds = report_units.metric(contest.metric).bounds
    if bounds:
        axes.set_ylim(bounds[0] - 0.03, bounds[1] + 0.06)
    if found:
        binary = name == "state_bytes"
        ticks = report_style.powers(found, 2) if binary else report_style.decades(found)
        report_style.log_ticks(axes.xaxis, ticks, report_units.size if binary else report_units.brief)
        axes.set_xlim(min(ticks) * 0.85, max(ticks) * 1.2)


def expense(entry: Entry, name: str) -> float | None:
    """A cost as one number: the median of those that were timed."""
    return (
        entry.number("cost", name) if entry.number("cost", name) is not None else entry.number("cost", name, "median")
    )


def alignment(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """Where each target token looks in the source, on one validation example: white is 0, full colour is 1."""
    shown = {contest.task: found for contest in contests if (found := _alignments(contest))}
    if not shown:
        return None
    columns = max(map(len, shown.values()))
    width = report_style.across(max(columns, 3))
    figure, grid = report_style.panels(len(shown), columns, width, 0.8 * width)
    for row, (task, found) in zip(grid, shown.items(), strict=True):
        for axes, (label, data) in zip(row, found.items(), strict=False):
            _heat(axes, data, looks[label].colour)
            axes.set_title(label, color=looks[label].colour)
        row[0].set_ylabel(f"{task}\n{row[0].get_ylabel()}")
        for axes in row[len(found) :]:
            axes.remove()
    return figure


def _alignments(contest: Contest) -> dict[str, dict[str, Any]]:
    """Per variant, the alignment of its first run that has one."""
    found = {}
    for label, runs in contest.runs.items():
        held = [entry.get("quality", "alignment") for entry in runs]
        held = [data for data in held if data and data.get("weights")]
        if held:
            found[label] = held[0]
    return found


def _heat(axes: Axes, data: Mapping[str, Any], colour: str) -> None:
    shades = LinearSegmentedColormap.from_list("attention", [report_style.PAPER, colour])
    weights = np.array(data["weights"], dtype=float)
    axes.imshow(weights, vmin=0, vmax=1, cmap=shades, aspect="auto", interpolation="nearest")
    axes.spines[:].set(visible=True, linewidth=0.6)
    axes.grid(visible=False)
    for axis, name in ((axes.xaxis, "source"), (axes.yaxis, "target")):
        ids = data.get(name) or []
        named = 0 < len(ids) <= MOST_IDS
        if named:
            axis.set_ticks(range(len(ids)), [str(token) for token in ids], fontsize=6)
        axis.set_label_text(f"{name} {'token' if named else 'position'}")
    axes.tick_params(length=0)
