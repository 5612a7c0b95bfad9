"""How the report writes numbers, names and text: units for people, and Markdown that no label or message can break."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from experiments.report.stats import Interval

NOTHING = "\N{EN DASH}"
"""A cell of a table without a value."""
MINUS = "\N{MINUS SIGN}"
TIED = "\N{NO-BREAK SPACE}"
"""Between what must stay on one line: a number and its unit, a mean and its interval."""


class Metric(NamedTuple):
    """How a score is called, which way is better, and its bounds."""

    name: str
    lower_is_better: bool = False
    bounds: tuple[float, float] | None = None


METRICS = {
    "token_accuracy": Metric("token accuracy", bounds=(0.0, 1.0)),
    "exact_match": Metric("exact match", bounds=(0.0, 1.0)),
    "bits_per_byte": Metric("bits per byte", lower_is_better=True),
    "loss": Metric("loss (nats)", lower_is_better=True),
}


def metric(name: str) -> Metric:
    """A known metric, or one named after itself of which more is better."""
    return METRICS.get(name, Metric(name.replace("_", " ")))


def axis_name(name: str) -> str:
    """A metric as it is called at an axis or over a column."""
    known = metric(name)
    return f"{known.name} (lower is better)" if known.lower_is_better else known.name


def count(value: float | None) -> str:
    """`101,234`."""
    return NOTHING if value is None else f"{value:,.0f}"


def short(value: float | None) -> str:
    """Three significant digits with a decimal prefix: `12.3 k`, `4.56 M`."""
    if value is None:
        return NOTHING
    power = 0 if abs(value) < 999.5 else min(int(math.log10(abs(value) * 1.0005)) // 3, 4)
    scaled = value / 1000**power
    return f"{_digits(scaled)}{TIED}{'kMGT'[power - 1]}" if power else _digits(scaled)


def brief(value: float) -> str:
    """A number at an axis: `512`, `1.5k`, `20k`, `3M`."""
    power = 0 if abs(value) < 1000 else min(int(math.log10(abs(value)) + 1e-9) // 3, 4)
    return f"{value / 1000**power:.3g}{' kMGT'[power].strip()}"


def tokens(value: float) -> str:
    """A length or context at an axis: `128`, `1,024`, `64 Ki`."""
    return count(value) if value < 10_000 or value % 1024 else f"{value / 1024:,.0f} Ki"


def size(value: float | None) -> str:
    """Three significant digits with a binary prefix: `512 B`, `1.5 KiB`, `23 MiB`."""
    if value is None:
        return NOTHING
    power = 0 if value < 1024 else min(int(math.log2(value)) // 10, 4)
    scaled = value / 1024**power
    return f"{_digits(scaled, trim=True)}{TIED}{('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def seconds(value: float | None) -> str:
    """`43 s`, `12 min`, `3.2 h`."""
    if value is None:
        return NOTHING
    if value < 120:
        return f"{value:.0f} s"
    return f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"


def rate(value: float | None) -> str:
    """A learning rate, as users type it."""
    return NOTHING if value is None else f"{value:g}"


def percent(value: float | None) -> str:
    """A signed share: `+1.2 %`."""
    return NOTHING if value is None else f"{value:+.1%}".replace("%", f"{TIED}%").replace("-", MINUS)


def score(value: float | None) -> str:
    """A score, with three decimals."""
    return NOTHING if value is None else f"{value:z.3f}".replace("-", MINUS)


def plus_minus(interval: Interval | None) -> str:
    """`0.981 ± 0.012`, or `0.981` alone where one seed gives no interval."""
    if interval is None:
        return NOTHING
    if interval.half is None:
        return score(interval.mean)
    half = "<0.001" if 0 < interval.half < 0.0005 else score(interval.half)
    return f"{score(interval.mean)}{TIED}±{TIED}{half}"


def p_value(value: float) -> str:
    """`0.031`, or `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def lengths(values: Sequence[int]) -> str:
    """`4 to 16` for several lengths, `128` for one."""
    return f"{min(values)} to {max(values)}" if len(set(values)) > 1 else f"{values[0]}"


def plural(number: int, noun: str) -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listing(items: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = list(items) or [""]
    return f"{', '.join(most)} and {last}" if most else last


def code(value: str) -> str:
    """Inline code: labels and keys, whatever characters they hold."""
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", value)), default=0))
    space = " " if value.startswith("`") or value.endswith("`") else ""
    return f"{fence}{space}{' '.join(value.split())}{space}{fence}" if value else NOTHING


def text(value: str) -> str:
    """A sentence that comes from a record, on one line, as plain text."""
    return re.sub(r"([\\`*_\[\]<>&#|~!])", r"\\\1", re.sub(r"[ \t\n\r\f\v]+", " ", value).strip())


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Lines of a Markdown table; the first `left` columns are aligned left, the others right."""
    rules = [":--" if column < left else "--:" for column in range(len(header))]
    return [_line(header), _line(rules), *(_line(row) for row in rows), ""]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(content: str) -> str:
    """A pipe ends a cell even within code; one that `text` has escaped is left alone."""
    return re.sub(r"(?<!\\)\|", r"\\|", content)


def _digits(value: float, trim: bool = False) -> str:
    """Three significant digits."""
    whole = abs(value) >= 100
    digits = f"{value:.0f}" if whole else f"{value:.3g}" if trim else f"{value:#.3g}".rstrip(".")
    return digits.replace("-", MINUS)
