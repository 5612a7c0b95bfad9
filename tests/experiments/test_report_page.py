"""The files of a report: figures that hold something, and a page that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import matplotlib as mpl
import matplotlib.image
import numpy as np
import pytest
from made_ledger import ARCHS, make_alignment, make_cell, make_cost, make_quality, make_record, write_ledger
from matplotlib.figure import Figure

from experiments import provenance, report
from experiments.report import figures, study, style, units
from experiments.report.style import COLOURS, SPARE

VOID = {"meta", "link", "br", "hr", "img", "input"}
FIGURES = ["quality", "learning", "length", "memory", "tradeoff", "alignment"]


@pytest.fixture(scope="module", autouse=True)
def _sources() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(provenance, "sources", lambda arch, task: f"{arch} and {task}")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of two tasks, every architecture, two seeds, costs, and alignments where there is attention."""
    records = []
    for task in ("reverse", "recall"):
        for number, label in enumerate(ARCHS):
            for seed in range(2):
                values = [0.95 - 0.1 * number, 0.8 - 0.1 * number, 0.4, 0.3 + 0.01 * seed]
                quality = make_quality(task, values, points=3)
                if number:
                    quality["alignment"] = make_alignment(task, float(number))
                records.append(make_record(make_cell(label, task, seed), quality=quality))
            cost = make_cost(10_000 * (number + 1), 2**number, number % 2)
            records.append(make_record(make_cell(label, task, kind="cost"), cost=cost))
    made = write_ledger(tmp_path_factory.mktemp("made"), records, tasks=["reverse", "recall"], seeds=2)
    assert report.write(made) == made / "report.html"
    return made


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def drawn(folder: Path) -> dict[str, Figure]:
    before = dict(mpl.rcParams)
    found = figures.draw(study.read(folder))
    assert dict(mpl.rcParams) == before, "drawing leaves matplotlib as it was"
    return found


def small_ledger(folder: Path) -> Path:
    return write_ledger(
        folder, [make_record(make_cell("gqa", "reverse"), quality=make_quality("reverse", [0.9] * 4, points=3))]
    )


class Page(HTMLParser):
    """Checks that what is opened is closed, and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_parses_and_asks_for_nothing(page: str) -> None:
    found = Page(page)
    assert found.tags.count("svg") == len(FIGURES)
    assert not {"script", "link", "iframe", "object", "img"} & set(found.tags)
    assert not re.search(r"https?:|//\w|@import|url\((?!#)", re.sub(r"data:image/png;base64,[^\"]*", "", page))
    targets = {value for name, value in found.attributes if name in ("href", "src")}
    assert all(target.startswith(("#", "cells/", "data:image/png;base64,")) for target in targets)
    ids = [value for name, value in found.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {target[1:] for target in targets if target.startswith("#")} <= set(ids)


def test_the_page_has_dark_and_print_styles_and_uses_them_in_its_figures(page: str) -> None:
    style, body = page.split("</style>")
    assert "prefers-color-scheme: dark" in style
    assert "@media print" in style
    for name in ("ink", "faint", "paper"):
        assert style.count(f"--{name}:") == 2, "once for light, once for dark"
        assert f": var(--{name})" in body


def test_a_label_has_its_architectures_colour_on_the_page(page: str) -> None:
    assert f'<code class="arch" style="--colour:{COLOURS["gqa"]}">gqa</code>' in page
    for label in ("seq2seq:attention=none", "seq2seq:attention=bahdanau"):
        assert f'<code class="arch" style="--colour:{COLOURS["seq2seq"]}">{label}</code>' in page


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_written_as_png_and_svg_and_hold_something(folder: Path, name: str) -> None:
    pixels = matplotlib.image.imread(folder / "figures" / f"{name}.png")
    assert pixels.shape[1] >= 1000
    assert len(np.unique((pixels[..., :3] * 255).astype(int) @ [65536, 256, 1])) > 50
    assert ElementTree.parse(folder / "figures" / f"{name}.svg").getroot().tag.endswith("svg")


def test_the_same_ledger_gives_the_same_files(tmp_path: Path) -> None:
    def files() -> dict[str, bytes]:
        report.write(folder)
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    folder = small_ledger(tmp_path)
    before = files()
    assert {"report.html", "report.md", "results.csv", "quality.png", "quality.svg"} <= before.keys()
    assert before == files()


def test_a_figure_that_is_no_longer_drawn_goes_and_a_users_own_stays(tmp_path: Path) -> None:
    (tmp_path / "figures").mkdir()
    for name in ("mine.png", "rates.png", "rates.svg"):
        (tmp_path / "figures" / name).write_bytes(b"of an earlier report, or mine")
    report.write(write_ledger(tmp_path, []))
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.png"]


def test_axes_name_what_they_show(drawn: dict[str, Figure]) -> None:
    assert list(drawn) == FIGURES
    names = {name: [axes.get_xlabel() for axes in figure.axes] for name, figure in drawn.items()}
    assert names["learning"] == ["training tokens (source + target)"] * 2
    assert names["length"] == ["length"] * 2
    assert names["memory"] == ["", "context (source + target tokens)"]
    assert all(axes.get_ylabel() == "token accuracy" for axes in drawn["learning"].axes)


def test_lines_are_the_means_over_seeds(drawn: dict[str, Figure]) -> None:
    line = drawn["length"].axes[0].get_lines()[0]
    assert line.get_color() == COLOURS["seq2seq"]
    assert list(line.get_xdata()) == [8, 16, 24, 32]
    assert list(line.get_ydata()) == pytest.approx([0.95, 0.80, 0.40, 0.305])


def test_the_lengths_of_training_are_shaded(drawn: dict[str, Figure]) -> None:
    (shade,) = (patch for patch in drawn["length"].axes[0].patches if patch.get_facecolor()[3] < 1)
    box = shade.get_extents().transformed(drawn["length"].axes[0].transData.inverted())
    assert (box.x0, box.x1) == pytest.approx((4, 16), abs=0.5)


def test_one_colour_per_architecture_and_one_look_per_variant() -> None:
    archs = {"seq2seq:a": "seq2seq", "gqa": "gqa", "seq2seq:b": "seq2seq", "mine": "mine", "other": "other"}
    looks = style.looks(archs)
    assert looks["seq2seq:a"].colour == looks["seq2seq:b"].colour == COLOURS["seq2seq"]
    assert len({look.colour for look in looks.values()}) == 4
    assert looks["seq2seq:a"].dashes != looks["seq2seq:b"].dashes
    assert len({look.marker for look in looks.values()}) == len(looks)
    assert style.looks({"gqa": "gqa"})["gqa"].colour == looks["gqa"].colour


def test_an_unknown_architecture_keeps_its_colour_whoever_else_is_there() -> None:
    assert style.colours(["mine"])["mine"] == style.colours(["gqa", "mine", "mamba"])["mine"]
    assert style.colours(["mine"])["mine"] in SPARE


def test_labels_are_moved_apart_in_their_order() -> None:
    moved = style.spread([10.0, 0.0, 10.5, 11.0], 9.0)
    assert [moved.index(place) for place in sorted(moved)] == [1, 0, 2, 3]
    assert all(abs(one - two) >= 9 - 1e-6 for one in moved for two in moved if one is not two)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (units.short(999.4), "999"),
        (units.short(999.6), "1.00 k"),
        (units.short(12_345), "12.3 k"),
        (units.short(4_560_000), "4.56 M"),
        (units.size(512), "512 B"),
        (units.size(1536), "1.5 KiB"),
        (units.size(23 * 2**20), "23 MiB"),
        (units.size(3 * 2**40), "3 TiB"),
        (units.count(101_234), "101,234"),
        (units.percent(-0.0123), "\N{MINUS SIGN}1.2 %"),
        (units.rate(3e-3), "0.003"),
        (units.seconds(43.2), "43 s"),
        (units.seconds(60 * 60 * 3), "3.0 h"),
        (units.score(-0.0001), "0.000"),
        (units.listing(["a", "b", "c"]), "a, b and c"),
        (units.code("a`b"), "``a`b``"),
        (units.brief(20_000), "20k"),
        (units.tokens(65_536), "64 Ki"),
    ],
)
def test_numbers_are_written_for_people(written: str, expected: str) -> None:
    assert written.replace(units.TIED, " ") == expected


def test_nothing_known_is_a_dash_everywhere() -> None:
    writers = (units.short, units.size, units.count, units.percent, units.score)
    assert {writer(None) for writer in writers} == {units.NOTHING}
