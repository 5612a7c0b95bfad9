"""Figures of how well architectures do: at the end, while they learn, and at every length.

Lines are means over seeds and bands reach from the worst seed to the best; intervals are in the tables and in
`quality`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments.report import style, units
from experiments.report.records import Entry
from experiments.report.stats import interval
from experiments.report.study import Contest
from experiments.report.style import FAINT, INK, PAPER, Look

Looks = Mapping[str, Look]

BOUND = 1.04
"""Axes of scores between 0 and 1 end a little beyond, so that a line at 1 is seen."""


def quality(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """Every variant's score in each task: its seeds, their mean, and the 95 % interval."""
    shown = [contest for contest in contests if contest.scores(contest.metric, contest.trained)]
    if not shown:
        return None
    labels = [label for label in looks if any(label in contest.runs for contest in shown)]
    rows, columns = style.wrap(len(shown))
    height = 0.75 + 0.42 * len(labels)
    figure, grid = style.panels(rows, columns, style.across(columns), height, sharey=True)
    for axes, contest in style.each(grid, shown):
        _forest(axes, contest, labels, looks)
    beyond = Line2D([], [], color=INK, marker="o", linestyle="none", markerfacecolor=PAPER)
    within = Line2D([], [], color=INK, marker="o", linestyle="none")
    figure.legend(
        [within, beyond], ["at trained lengths", "at the longest length"], loc="outside upper center", ncols=2
    )
    return figure


def _forest(axes: Axes, contest: Contest, labels: Sequence[str], looks: Looks) -> None:
    places = {label: -float(row) for row, label in enumerate(labels)}
    groups: list[tuple[list[int], float, bool]] = [(contest.trained, 0.13, False)]
    if contest.beyond is not None:
        groups.append(([contest.beyond], -0.17, True))
    for lengths, shift, hollow in groups:
        for label, scores in contest.scores(contest.metric, lengths).items():
            _estimate(axes, list(scores.values()), places[label] + shift, looks[label], hollow)
    bounds = units.metric(contest.metric).bounds
    if bounds:
        axes.set_xlim(bounds[0] - 0.04, bounds[1] * BOUND)
    axes.set_yticks(list(places.values()), labels)
    axes.set_ylim(-len(labels) + 0.45, 0.55)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set(title=contest.task, xlabel=units.axis_name(contest.metric))


def _estimate(axes: Axes, values: list[float], place: float, look: Look, hollow: bool) -> None:
    found = interval(values)
    assert found is not None
    if found.half is not None:
        axes.plot([found.mean - found.half, found.mean + found.half], [place, place], color=look.colour, linewidth=2)
    axes.plot(values, [place] * len(values), "|", color=look.colour, markersize=7, markeredgewidth=1)
    marker = look.hollow if hollow else look.point
    axes.plot([found.mean], [place], **{**marker, "markersize": 7})


def learning(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """The validation score at trained lengths against the tokens seen."""
    return _lines(contests, looks, _learning_panel)


def _learning_panel(axes: Axes, contest: Contest, looks: Looks) -> set[str]:
    drawn = set()
    for label, runs in contest.runs.items():
        curves = [curve for entry in runs if len(curve := _curve(entry, contest))]
        if curves:
            tokens, scores = _aligned(curves)
            _band(axes, tokens, scores, looks[label], mark=len(tokens) - 1)
            drawn.add(label)
    axes.set(xlabel="training tokens (source + target)", ylabel=units.axis_name(contest.metric))
    style.few_ticks(axes.xaxis, units.brief)
    return drawn


def _curve(entry: Entry, contest: Contest) -> np.ndarray:
    """(points, 3): step, tokens, validation score; points without a score are left out."""
    points = []
    for point in entry.get("quality", "curve") or []:
        held = Entry({"quality": point}, None)
        row = (
            held.number("quality", "step"),
            held.number("quality", "tokens"),
            held.score(contest.metric, contest.trained, "validation"),
        )
        if None not in row:
            points.append(row)
    return np.array(points, dtype=float)


def _aligned(curves: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens (points,) and scores (seeds, points) at all steps; a run that stopped when solved keeps its last score."""
    steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    tokens = np.max([np.interp(steps, curve[:, 0], curve[:, 1]) for curve in curves], axis=0)
    return tokens, np.array([np.interp(steps, curve[:, 0], curve[:, 2]) for curve in curves])


def length(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """The test score at every length, those of training shaded."""
    trained = Patch(color=FAINT, alpha=0.6, label="lengths in training")
    several = [contest for contest in contests if len(contest.lengths) > 1]
    return _lines(several, looks, _length_panel, extra=[trained])


def _length_panel(axes: Axes, contest: Contest, looks: Looks) -> set[str]:
    drawn = set()
    if contest.train_range:
        first, last = contest.train_range
        margin = 0.01 * contest.lengths[-1]
        axes.axvspan(first - margin, last + margin, color=FAINT, alpha=0.6, linewidth=0, zorder=0)
    for label, runs in contest.runs.items():
        rows = [[entry.score(contest.metric, [length]) for length in contest.lengths] for entry in runs]
        known = np.array(rows, dtype=float)
        if not np.isnan(known).all():
            _band(axes, np.array(contest.lengths), known, looks[label])
            drawn.add(label)
    axes.set(xlabel="length", ylabel=units.axis_name(contest.metric))
    if contest.lengths[-1] > 8 * max(contest.lengths[0], 1):
        style.log_ticks(axes.xaxis, contest.lengths, units.tokens)
    else:
        axes.set_xticks(contest.lengths)
    return drawn


def _lines(
    contests: Sequence[Contest],
    looks: Looks,
    panel: Callable[[Axes, Contest, Looks], set[str]],
    extra: Sequence[Any] = (),
) -> Figure | None:
    """One panel per task; None where no panel has a line."""
    shown = [contest for contest in contests if contest.runs]
    if not shown:
        return None
    rows, columns = style.wrap(len(shown))
    figure, grid = style.panels(rows, columns, style.across(columns), 2.7)
    drawn: set[str] = set()
    for axes, contest in style.each(grid, shown):
        drawn |= panel(axes, contest, looks)
        bounds = units.metric(contest.metric).bounds
        if bounds:
            axes.set_ylim(bounds[0] - 0.02, bounds[1] * BOUND)
        axes.set_title(contest.task)
    style.legend(figure, {label: looks[label] for label in looks if label in drawn}, extra)
    return figure if drawn else None


def _band(axes: Axes, x: np.ndarray, y: np.ndarray, look: Look, mark: int | None = None) -> None:
    """The mean of y (seeds, points) and what lies between its extremes; a marker at each point, or at one."""
    marks = slice(None) if mark is None else [mark]
    axes.plot(x, y.mean(0), **look.line, markevery=marks, zorder=3)
    if len(y) > 1:
        axes.fill_between(x, y.min(0), y.max(0), color=look.colour, alpha=0.16, linewidth=0, zorder=2)


def rates(contests: Sequence[Contest], looks: Looks) -> Figure | None:
    """The validation score at each learning rate of a grid; the selected ones are ringed."""
    return _lines([contest for contest in contests if contest.tried], looks, _rates_panel)


def _rates_panel(axes: Axes, contest: Contest, looks: Looks) -> set[str]:
    for label, scored in contest.tried.items():
        axes.plot(list(scored), list(scored.values()), **looks[label].line)
        chosen = contest.rates[label]
        if chosen in scored:
            axes.plot([chosen], [scored[chosen]], "o", color=looks[label].colour, markersize=12, fillstyle="none")
    known = {lr for scored in contest.tried.values() for lr in scored}
    style.log_ticks(axes.xaxis, sorted(known), units.rate)
    axes.set(xlabel="learning rate", ylabel=f"validation {units.axis_name(contest.metric)}")
    return set(contest.tried)
