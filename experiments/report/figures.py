"""The report's figures, drawn with matplotlib's objects alone: no pyplot, no display, no state left behind.

Tasks whose records may not share a table have no panel.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from experiments.report import figures_cost, figures_quality, style
from experiments.report.study import Contest, Study
from experiments.report.style import Look

FIGURES: dict[str, Callable[[Sequence[Contest], Mapping[str, Look]], Figure | None]] = {
    "quality": figures_quality.quality,
    "learning": figures_quality.learning,
    "rates": figures_quality.rates,
    "length": figures_quality.length,
    "memory": figures_cost.memory,
    "tradeoff": figures_cost.tradeoff,
    "alignment": figures_cost.alignment,
}
"""Name -> what draws it, or gives None where no record has what it shows; in the order of the report."""


def draw(study: Study) -> dict[str, Figure]:
    """Every figure that the records allow, by name, in the order of the report."""
    looks = style.looks(study.archs)
    contests = [contest for contest in study.contests if contest.refusal is None]
    with mpl.rc_context(style.STYLE):
        figures = {name: figure(contests, looks) for name, figure in FIGURES.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}


def save(figures: Mapping[str, Figure], folder: Path) -> None:
    """Write NAME.png and NAME.svg of each; those of an earlier report that have no place in this one are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in FIGURES.keys() - figures.keys():
        for suffix in (".png", ".svg"):
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    with mpl.rc_context(style.STYLE):
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=160, metadata={"Software": None})
            # The layout is settled now; finding it takes most of the time.
            figure.set_layout_engine("none")
            (folder / f"{name}.svg").write_text(_svg(figure), encoding="utf-8")


def _svg(figure: Figure) -> str:
    """The figure as SVG, without matplotlib's metadata: they hold addresses, and a date."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return buffer.getvalue()
