"""Figures of what architectures cost, and of what they look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from experiments.report import style, units
from experiments.report.costs import GROWING, expense, growing, points
from experiments.report.stats import growth
from experiments.report.study import Contest
from experiments.report.style import Look

Looks = Mapping[str, Look]

COSTS = {
    "train_tokens_per_second": "training tokens/s",
    "decode_tokens_per_second": "generated tokens/s",
    "state_bytes": "state per sequence",
}
MOST_IDS = 20
"""More tokens than that are not named at the axes of an alignment."""


def memory(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """Bytes against context, both logarithmic, with the exponent of a power law fitted to each line."""
    shown = growing(contests)
    if not shown:
        return None
    figure, grid = style.panels(len(GROWING), len(shown), style.across(len(shown)), 2.7, sharey="row")
    labels = {label: looks[label] for label in looks if any(label in contest.costs for contest in shown.values())}
    for row, (name, title) in zip(grid, GROWING.items(), strict=True):
        for axes, (tasks, contest) in zip(row, shown.items(), strict=True):
            _growth_panel(axes, contest, name, looks)
            axes.set_title(tasks)
        row[0].set_ylabel(title)
    for axes in grid[-1]:
        axes.set_xlabel("context (source + target tokens)")
    # Only now are the limits known which keep the labels apart.
    figure.draw_without_rendering()
    for row, name in zip(grid, GROWING, strict=True):
        for axes, contest in zip(row, shown.values(), strict=True):
            _name_exponents(axes, contest, name, looks, 72 / figure.dpi)
    style.legend(figure, labels)
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
    style.log_ticks(axes.xaxis, sorted(contexts), units.tokens)
    style.log_ticks(axes.yaxis, style.powers(sizes, 2), units.size)


def _name_exponents(axes: Axes, contest: Contest, name: str, looks: Looks, points_per_pixel: float) -> None:
    """`L^1.0` at the end of each line, none above another."""
    ends = {label: known for label, entry in contest.costs.items() if len(known := points(entry, name)) > 1}
    heights = [axes.transData.transform(known[-1])[1] * points_per_pixel for known in ends.values()]
    for (label, known), before, after in zip(ends.items(), heights, style.spread(heights, 9), strict=True):
        axes.annotate(
            f"$L^{{{growth(known):.1f}}}$",
            known[-1],
            (6, after - before),
            textcoords="offset points",
            va="center",
            color=looks[label].colour,
            fontsize=8,
        )


def tradeoff(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """The score at trained lengths against each cost; hollow where a slow fallback ran."""
    shown = [contest for contest in contests if contest.runs.keys() & contest.costs.keys()]
    if not shown:
        return None
    figure, grid = style.panels(len(shown), len(COSTS), style.across(len(COSTS)), 2.4, sharey="row")
    for row, contest in zip(grid, shown, strict=True):
        for axes, name in zip(row, COSTS, strict=True):
            _scatter(axes, contest, name, looks)
            axes.set_xlabel(COSTS[name])
        row[0].set_ylabel(units.axis_name(contest.metric))
        row[0].set_title(contest.task)
    style.legend(figure, {label: looks[label] for label in looks if any(label in c.costs for c in shown)})
    return figure


def _scatter(axes: Axes, contest: Contest, name: str, looks: Looks) -> None:
    found = []
    for label, scores in contest.scores(contest.metric, contest.trained).items():
        cost = expense(contest.costs[label], name) if label in contest.costs else None
        if cost:
            found.append(cost)
            marker = looks[label].hollow if contest.costs[label].fallback else looks[label].point
            axes.plot([cost], [np.mean(list(scores.values()))], **{**marker, "markersize": 8})
    bounds = units.metric(contest.metric).bounds
    if bounds:
        axes.set_ylim(bounds[0] - 0.03, bounds[1] + 0.06)
    if found:
        binary = name == "state_bytes"
        ticks = style.powers(found, 2) if binary else style.decades(found)
        style.log_ticks(axes.xaxis, ticks, units.size if binary else units.brief)
        axes.set_xlim(min(ticks) * 0.85, max(ticks) * 1.2)


def alignment(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """Where each target token looks in the source, on one validation example: white is 0, full colour the most."""
    shown = {contest.task: found for contest in contests if (found := _alignments(contest))}
    if not shown:
        return None
    columns = max(map(len, shown.values()))
    width = style.across(max(columns, 3))
    figure, grid = style.panels(len(shown), columns, width, 0.8 * width)
    for row, (task, found) in zip(grid, shown.items(), strict=True):
        for axes, (label, data) in zip(row, found.items(), strict=False):
            weights = np.array(data["weights"], dtype=float)
            _heat(axes, data, weights, looks[label].colour)
            axes.set_title(f"{label} (up to {weights.max():.2f})", color=looks[label].colour)
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


def _heat(axes: Axes, data: Mapping[str, Any], weights: np.ndarray, colour: str) -> None:
    shades = LinearSegmentedColormap.from_list("attention", [style.PAPER, colour])
    axes.imshow(weights, vmin=0, cmap=shades, aspect="auto", interpolation="nearest")
    axes.spines[:].set(visible=True, linewidth=0.6)
    axes.grid(visible=False)
    for axis, name in ((axes.xaxis, "source"), (axes.yaxis, "target")):
        ids = data.get(name) or []
        named = 0 < len(ids) <= MOST_IDS
        if named:
            axis.set_ticks(range(len(ids)), [str(token) for token in ids], fontsize=6)
        axis.set_label_text(f"{name} {'token' if named else 'position'}")
    axes.tick_params(length=0)
