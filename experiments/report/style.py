"""How figures look: one colour per architecture everywhere, and the axes that they share."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

T = TypeVar("T")

INK, FAINT, PAPER = "#24292f", "#d8dee4", "#ffffff"
"""Of text and axes, of grids, and of what lies behind: the page replaces them where it is dark."""
COLOURS = {"seq2seq": "#d55e00", "transformer": "#0072b2", "gqa": "#009e73", "mamba": "#cc79a7"}
"""Okabe and Ito, "Color universal design" (2008), told apart with any colour vision."""
SPARE = ("#e69f00", "#56b4e9", "#7f7f7f", "#b8a800")
"""For any other architecture: three more of theirs, and their yellow, darkened to be seen on white."""
MARKERS = "os^DvPX<>ph*"
DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.2, 1, 1.2)), (0, (2, 2)))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "path",
    # With it, and without a date, the same records give the same file.
    "svg.hashsalt": "archlab",
} | dict.fromkeys(
    ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "axes.titlecolor"), INK
)


@dataclass(frozen=True)
class Look:
    """Of one variant: the colour is its architecture's; dashes and marker tell variants of it apart."""

    colour: str
    dashes: Any
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """Keywords of `Axes.plot` for a line with markers."""
        return {"color": self.colour, "linestyle": self.dashes, **self.point}

    @property
    def point(self) -> dict[str, Any]:
        """Keywords of `Axes.plot` for markers."""
        return {"color": self.colour, "marker": self.marker, "markeredgecolor": PAPER, "markeredgewidth": 0.7}

    @property
    def hollow(self) -> dict[str, Any]:
        """The same markers, empty."""
        return {**self.point, "markerfacecolor": PAPER, "markeredgecolor": self.colour, "markeredgewidth": 1.4}


def looks(archs: Mapping[str, str]) -> dict[str, Look]:
    """{label: architecture} -> {label: look}."""
    palette = colours(archs.values())
    found: dict[str, Look] = {}
    for number, (label, arch) in enumerate(archs.items()):
        before = list(archs.values())[:number].count(arch)
        found[label] = Look(palette[arch], DASHES[before % len(DASHES)], MARKERS[number % len(MARKERS)])
    return found


def colours(archs: Iterable[str]) -> dict[str, str]:
    """A colour for each architecture: its own, or a spare one chosen by its name and free where possible."""
    found: dict[str, str] = {}
    for arch in dict.fromkeys(archs):
        start = zlib.crc32(arch.encode())
        turned = [SPARE[(start + shift) % len(SPARE)] for shift in range(len(SPARE))]
        free = [colour for colour in turned if colour not in found.values()]
        found[arch] = COLOURS.get(arch) or (free or turned)[0]
    return found


def panels(rows: int, columns: int, width: float, height: float, **options: Any) -> tuple[Figure, list[list[Axes]]]:
    """A figure with rows x columns of axes, each about width x height inches."""
    figure = Figure(figsize=(width * columns, height * rows + 0.35), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, [list(row) for row in axes]


def each(grid: Sequence[Sequence[Axes]], items: Sequence[T]) -> list[tuple[Axes, T]]:
    """Axes for each item; those left over are taken out."""
    flat = [axes for row in grid for axes in row]
    for axes in flat[len(items) :]:
        axes.remove()
    return list(zip(flat, items, strict=False))


def across(columns: int) -> float:
    """The width in inches of one of so many panels side by side."""
    return min(7.0, 10.5 / columns)


def wrap(number: int, most: int = 3) -> tuple[int, int]:
    """Rows and columns for so many panels."""
    columns = min(number, most)
    return -(-number // columns), columns


def legend(figure: Figure, chosen: Mapping[str, Look], extra: Sequence[Line2D] = ()) -> None:
    """One legend for all panels, above them."""
    handles = [Line2D([], [], label=label, **look.line) for label, look in chosen.items()]
    every = [*handles, *extra]
    # About so many inches of text and line; rows are then filled evenly.
    width = sum(0.75 + 0.075 * len(str(handle.get_label())) for handle in every)
    rows = -(-width // figure.get_figwidth())
    columns = max(1, math.ceil(len(every) / rows)) if rows else 1
    figure.legend(handles=every, loc="outside upper center", ncols=columns, handlelength=2.6)


def log_ticks(axis: Any, values: Sequence[float], text: Any) -> None:
    """A logarithmic axis, base 2, with ticks at these values alone."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def few_ticks(axis: Any, text: Any, most: int = 5) -> None:
    """A linear axis with few ticks."""
    axis.set_major_locator(MaxNLocator(most))
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def powers(values: Sequence[float], base: float, most: int = 6) -> list[float]:
    """Ticks of a logarithmic axis: powers of `base` around the values, thinned out evenly."""
    low = math.floor(math.log(min(values), base))
    high = math.ceil(math.log(max(values), base))
    step = -(-(high - low + 1) // most)
    return [base**power for power in range(low, high + step, step)]


def decades(values: Sequence[float]) -> list[float]:
    """Ticks of a logarithmic axis: 1, 2, 5, 10, 20, ... around the values, or powers of ten where those are many."""
    low = math.floor(math.log10(min(values)))
    high = math.floor(math.log10(max(values)))
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in (1, 2, 5)] + [10.0 ** (high + 1)]
    first = max(tick for tick in ticks if tick <= min(values) * 1.001)
    last = min(tick for tick in ticks if tick >= max(values) * 0.999)
    within = [tick for tick in ticks if first <= tick <= last]
    return within if len(within) < 7 else powers(values, 10)


def spread(positions: Sequence[float], gap: float) -> list[float]:
    """The positions, moved apart as little as keeps every two at least `gap` from one another, in their order."""
    order = sorted(range(len(positions)), key=positions.__getitem__)
    moved = list(positions)
    for _ in range(100):
        tight = False
        for below, above in itertools.pairwise(order):
            overlap = gap - (moved[above] - moved[below])
            if overlap > 1e-9:
                moved[below] -= overlap / 2
                moved[above] += overlap / 2
                tight = True
        if not tight:
            break
    return moved
