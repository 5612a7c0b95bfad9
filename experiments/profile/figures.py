"""The figures of a profile: memory and speed against context, and what the memory is made of. No pyplot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from experiments.profile.analysis import by_series, exponent
from experiments.profile.frontier import MOST, Frontier
from experiments.profile.rows import Row, Series
from experiments.report import style, units
from experiments.report.style import Look

PARTS = {
    "parameters": "#7f7f7f", "gradients": "#e69f00", "optimizer": "#b8a800", "activations": "#0072b2",
    "state": "#cc79a7", "rest": "#9fc5e8",
}  # fmt: skip
"""Colour of each category of the breakdown."""
_HALO = withStroke(linewidth=3, foreground="white")
"""Around text that may lie on a line or marker."""
OUT = {"oom": "x", "timeout": "|"}
"""Markers of ends."""


def draw(rows: Sequence[Row], limit: int | None, frontiers: Sequence[Frontier] = ()) -> dict[str, Figure]:
    """Every figure that the rows allow, by name."""
    looks = style.looks({row.label: row.arch for row in rows})
    groups = by_series(rows)
    with mpl.rc_context(style.STYLE):
        figures = {
            "memory": _memory(groups, looks, limit, frontiers),
            "speed": _speed(groups, looks),
            "split": _split(groups),
        }
    # Named apart from compare's, beside which they may stand in one page.
    return {f"context-{name}": figure for name, figure in figures.items() if figure is not None}


def _panels(groups: Mapping[Series, Sequence[Row]]) -> dict[tuple[str, int], dict[str, Sequence[Row]]]:
    """(mode, rows) -> label -> rows: one panel each."""
    panels: dict[tuple[str, int], dict[str, Sequence[Row]]] = {}
    for (label, mode, rows), members in groups.items():
        panels.setdefault((mode, rows), {})[label] = members
    return panels


def _title(mode: str, rows: int) -> str:
    return f"{mode}, {rows} sequences" if rows > 1 else mode


def _memory(
    groups: Mapping[Series, Sequence[Row]],
    looks: Mapping[str, Look],
    limit: int | None,
    frontiers: Sequence[Frontier],
) -> Figure | None:
    panels = _panels({series: rows for series, rows in groups.items() if any(row.bytes for row in rows)})
    if not panels:
        return None
    rows, columns = style.wrap(len(panels), 2)
    figure, grid = style.panels(rows, columns, 5.2, 3.5)
    placed = list(style.each(grid, list(panels.items())))
    for axes, ((mode, count), members) in placed:
        axes.set_title(_title(mode, count))
        for label, found in members.items():
            _memory_line(axes, found, looks[label])
        if limit is not None:
            axes.axhline(limit, color=style.INK, linewidth=1, linestyle=(0, (6, 3)))
            axes.annotate(f"limit {units.size(limit)}", (0.01, limit), xycoords=("axes fraction", "data"),
                          xytext=(0, 3), textcoords="offset points", fontsize=8)  # fmt: skip
        here = [one for one in frontiers if one.series[1:] == (mode, count) and 0 < one.predicted < MOST]
        for one in here:
            _frontier_mark(axes, one, looks[one.series[0]])
        every = [row for found in members.values() for row in found]
        reach = [*(row.context for row in every), *(one.predicted for one in here)]
        _context_axis(axes, [row.context for row in every if not row.trial], reach)
        sizes = [row.bytes for found in members.values() for row in found if row.bytes]
        style.log_ticks(axes.yaxis, style.powers([*sizes, *([limit] if limit else [])], 2), units.size)
        axes.set_ylabel("peak memory")
    figure.draw_without_rendering()
    for axes, (_, members) in placed:
        _exponents(axes, members, looks, 72 / figure.dpi)
    style.legend(figure, _used(looks, groups), [*_notes(groups), *_frontier_notes(frontiers)])
    return figure


def _frontier_mark(axes: Axes, found: Frontier, look: Look) -> None:
    """A diamond on the limit, filled where a measurement confirms it."""
    face = look.colour if found.fits else "none"
    axes.plot([found.predicted], [found.limit], marker="D", color=look.colour, markerfacecolor=face, markersize=6)


def _frontier_notes(frontiers: Sequence[Frontier]) -> list[Line2D]:
    notes = {"frontier, measured": "full" if any(one.fits for one in frontiers) else None,
             "frontier, predicted": "none" if any(not one.fits for one in frontiers) else None}  # fmt: skip
    return [
        Line2D([], [], color=style.INK, linestyle="", marker="D", fillstyle=fill, label=label)  # type: ignore[arg-type]  # stubs
        for label, fill in notes.items()
        if fill
    ]


def _memory_line(axes: Axes, rows: Sequence[Row], look: Look) -> None:
    measured = [(row.context, row.measured_bytes) for row in rows if row.measured_bytes and row.status == "done"]
    predicted = [(row.context, row.predicted_bytes) for row in rows if row.predicted_bytes]
    if predicted:
        axes.plot(*zip(*predicted, strict=True), color=look.colour, linestyle=(0, (3, 1.5)), linewidth=1.2)
    if measured:
        axes.plot(*zip(*measured, strict=True), color=look.colour, linestyle="-", **_point(look))
    untracked = [(row.context, row.process_bytes) for row in rows if _untracked(row)]
    if untracked:
        axes.plot(*zip(*untracked, strict=True), linestyle="", **look.hollow)
    for row in rows:
        if row.status in OUT and (size := row.predicted_bytes or row.bytes):
            axes.plot([row.context], [size], color=look.colour, marker=OUT[row.status], markersize=9,
                      markeredgewidth=2)  # fmt: skip


def _untracked(row: Row) -> bool:
    """Whether only the process's peak was measured: a loop over time makes more operations than can be followed."""
    return row.status == "done" and row.measured_bytes is None and row.process_bytes is not None


def _point(look: Look) -> dict[str, Any]:
    return {name: value for name, value in look.point.items() if name != "color"}


def _exponents(axes: Axes, members: Mapping[str, Sequence[Row]], looks: Mapping[str, Look], scale: float) -> None:
    """`L^1.0` at the end of each line, none above another."""
    ends: dict[str, tuple[int, int, float]] = {}
    for label, rows in members.items():
        power = exponent(rows)
        last = max((row for row in rows if row.bytes), key=lambda row: row.context, default=None)
        if power is not None and last is not None and last.bytes is not None:
            ends[label] = (last.context, last.bytes, power)
    heights = [axes.transData.transform((x, y))[1] * scale for x, y, _ in ends.values()]
    for (label, (x, y, power)), before, after in zip(ends.items(), heights, style.spread(heights, 9), strict=True):
        axes.annotate(f"$L^{{{power:.1f}}}$", (x, y), (9, after - before), textcoords="offset points", va="center",
                      color=looks[label].colour, fontsize=8, path_effects=[_HALO])  # fmt: skip


def _context_axis(axes: Axes, contexts: Sequence[int], reach: Sequence[int] = ()) -> None:
    """Ticks at the contexts that were asked for; reach: others that are to be in view."""
    axes.set(xscale="log", yscale="log")
    axes.set_xlim(min(contexts) / 1.2, max([*contexts, *reach]) * 1.9)
    known = sorted(set(contexts))
    while 4 * known[-1] <= max(reach, default=0):
        known.append(4 * known[-1])
    style.log_ticks(axes.xaxis, known[:: -(-len(known) // 6)], _short_context)
    axes.set_xlabel("context (source + target tokens)")


def _short_context(value: float) -> str:
    """`4k`, `1M`."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if value >= size and value % size == 0:
            return f"{value / size:.0f}{unit}"
    return units.brief(value)


def _used(looks: Mapping[str, Look], groups: Mapping[Series, Sequence[Row]]) -> dict[str, Look]:
    shown = {label for label, _, _ in groups}
    return {label: Look(look.colour, "-", look.marker) for label, look in looks.items() if label in shown}


def _notes(groups: Mapping[Series, Sequence[Row]]) -> list[Line2D]:
    every = [row for rows in groups.values() for row in rows]
    notes = []
    if any(row.predicted_bytes for row in every):
        notes.append(Line2D([], [], color=style.INK, linestyle=(0, (3, 1.5)), linewidth=1.2, label="predicted"))
    if any(map(_untracked, every)):
        notes.append(Line2D([], [], color=style.INK, linestyle="", marker="o", fillstyle="none",
                            label="the process's peak"))  # fmt: skip
    for status, marker in OUT.items():
        if any(row.status == status and row.bytes for row in every):
            label = {"oom": "out of memory", "timeout": "out of time"}[status]
            notes.append(Line2D([], [], color=style.INK, linestyle="", marker=marker, markersize=8,
                                markeredgewidth=2, label=label))  # fmt: skip
    return notes


def _speed(groups: Mapping[Series, Sequence[Row]], looks: Mapping[str, Look]) -> Figure | None:
    panels = _panels({series: rows for series, rows in groups.items() if any(row.speed for row in rows)})
    if not panels:
        return None
    count, columns = style.wrap(len(panels), 2)
    figure, grid = style.panels(count, columns, 5.2, 3.2)
    for axes, ((mode, rows), members) in style.each(grid, list(panels.items())):
        axes.set_title(_title(mode, rows))
        speeds = []
        for label, found in members.items():
            known = [row for row in found if row.speed]
            if not known:
                continue
            low, high = ([row.measured["speed"][end] for row in known] for end in ("low", "high"))
            contexts = [row.context for row in known]
            axes.fill_between(contexts, low, high, color=looks[label].colour, alpha=0.18, linewidth=0)
            axes.plot(contexts, [row.speed or 0.0 for row in known], color=looks[label].colour, **_point(looks[label]))
            speeds += [row.speed for row in known if row.speed]
        _context_axis(axes, [row.context for found in members.values() for row in found if row.speed])
        style.log_ticks(axes.yaxis, style.decades(speeds), units.brief)
        axes.set_ylabel("tokens per second")
    style.legend(figure, _used(looks, groups))
    return figure


def _split(groups: Mapping[Series, Sequence[Row]]) -> Figure | None:
    """Breakdown bars at the longest context that every architecture of a mode has."""
    panels = _panels({series: rows for series, rows in groups.items() if any(row.split for row in rows)})
    if not panels:
        return None
    count, columns = style.wrap(len(panels), 2)
    tallest = max(len(members) for members in panels.values())
    figure, grid = style.panels(count, columns, 5.2, 1.0 + 0.38 * tallest)
    for axes, ((mode, rows), members) in style.each(grid, list(panels.items())):
        shared = set.intersection(*({row.context for row in found if row.split} for found in members.values()))
        done = set.intersection(*({row.context for row in found if row.measured_bytes} for found in members.values()))
        if not shared:
            axes.remove()
            continue
        context = max(done & shared or shared)
        chosen = {label: next(r for r in found if r.context == context) for label, found in members.items()}
        axes.set_title(f"{_title(mode, rows)} at {_short_context(context)} tokens")
        left = [0.0] * len(chosen)
        for part, colour in PARTS.items():
            sizes = [float(row.split.get(part, 0)) for row in chosen.values()]
            axes.barh(list(chosen), sizes, left=left, color=colour, height=0.66)
            left = [start + size for start, size in zip(left, sizes, strict=True)]
        axes.invert_yaxis()
        step = 2.0 ** math.ceil(math.log2(max(left) / 4))
        axes.set_xticks([step * count for count in range(5) if step * (count - 1) < max(left)])
        axes.xaxis.set_major_formatter(lambda value, _: units.size(value))
        axes.grid(visible=False, axis="y")
    figure.legend(handles=[Patch(color=colour, label=part) for part, colour in PARTS.items()],
                  loc="outside upper center", ncols=len(PARTS))  # fmt: skip
    return figure
