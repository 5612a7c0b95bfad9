"""The report of a profile: tables, findings, figures, Markdown, HTML, CSV and JSON. No torch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from experiments import ledger
from experiments.profile import analysis, config, figures
from experiments.profile.cards import CARDS
from experiments.profile.config import Profile
from experiments.profile.findings import findings, reach
from experiments.profile.frontier import Frontier
from experiments.profile.models import MODELS
from experiments.profile.rows import GAP, SLACK, Row
from experiments.profile.study import Study
from experiments.report import figures as files
from experiments.report import html, style, units

CAPTIONS = {
    "context-memory": "Peak memory against context, both logarithmic; exponents are fitted to the four "
    "longest contexts, beyond parameters, gradients and optimiser. Decoding is shown without the reading before it, "
    "which takes more and which its frontier counts.",
    "context-speed": "Measured tokens per second (source + target); bands reach from the lower to the upper quartile.",
    "context-split": "What the peak is made of, at the longest context that all have.",
}
NOT_MODELLED = (
    "A prediction runs the model on fake tensors and follows every storage. Not modelled: scratch memory within "
    "library kernels (cuBLAS, cuDNN, attention workspaces), the CUDA context, the allocator's rounding and "
    "fragmentation, and a card's own kernels, for which those of the CPU stand in: ours compute in float32 there. "
    "Roofline speed is a bound, not an estimate: each operation by itself, limited by the card's peak FLOPs or "
    "bandwidth."
)


def write(folder: Path, study: Study) -> None:
    """report.md, report.html, profile.json, profile.csv and figures/ from what is known."""
    profile, rows = study.profile, study.rows
    drawn = figures.draw(rows, config.limit(profile) if config.limited(profile) else None, study.frontiers)
    files.save(drawn, folder / "figures")
    markdown = compose(study, drawn)
    looks = style.looks({row.label: row.arch for row in rows})
    page = html.page(markdown, folder, {label: look.colour for label, look in looks.items()})
    ledger.write_text(folder / "report.md", markdown)
    ledger.write_text(folder / "report.html", page)
    ledger.write_json(folder / "profile.json", {
        "profile": config.to_dict(profile),
        "rows": [_flat(row) for row in rows],
        "exponents": {" ".join(map(str, s)): analysis.exponent(r) for s, r in analysis.by_series(rows).items()},
        "frontiers": [found.to_json() for found in study.frontiers],
        "findings": findings(study),
        "environment": next(iter(_environments(study.wanted)), None),
    })  # fmt: skip
    ledger.write_text(folder / "profile.csv", table_csv(rows))


def show(folder: Path, study: Study, console: Console) -> None:
    """Print the tables, the findings, and where the report is."""
    for table in tables(study):
        console.print(table)
    for line in [*findings(study), f"report   {folder / 'report.html'}"]:
        console.print(escape(line), highlight=False, soft_wrap=True)


def tables(study: Study) -> list[Table]:
    """One for each mode and number of sequences: contexts down, architectures across, frontiers at the foot."""
    found, limit = [], config.limit(study.profile)
    asked = [row for row in study.rows if not row.trial]
    for (mode, count), members in _by_mode(asked).items():
        table = Table(
            title=_mode(mode, count), title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False
        )
        table.add_column("context", justify="right")
        labels = list(dict.fromkeys(row.label for row in members))
        for label in labels:
            table.add_column(escape(label), justify="right")
        for context in sorted({row.context for row in members}):
            cells = {row.label: row for row in members if row.context == context}
            table.add_row(f"{context:,}", *(_cell(cells.get(label), limit) for label in labels))
        frontiers = {one.series[0]: one for one in study.frontiers if one.series[1:] == (mode, count)}
        if frontiers:
            table.add_section()
            table.add_row("frontier", *(_frontier(frontiers[label]) for label in labels))
        found.append(table)
    return found


def _by_mode(rows: Iterable[Row]) -> dict[tuple[str, int], list[Row]]:
    found: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        found.setdefault((row.mode, row.rows), []).append(row)
    return found


def _mode(mode: str, count: int) -> str:
    what = {"train": "an optimiser step", "prefill": "reading the context", "decode": "64 tokens after the context"}
    return f"{mode} ({what[mode]}{f', {count} sequences' if count > 1 else ''})"


def _cell(row: Row | None, limit: int | None) -> str:
    """`1.2 GiB  34 k/s`; a prediction in parentheses; how it ended where it is not done."""
    if row is None:
        return ""
    if row.status in (None, "done"):
        said = [units.size(row.measured_bytes)] if row.measured_bytes else []
        if row.predicted_bytes and not row.measured_bytes:
            over = limit is not None and row.predicted["needed_bytes"] > limit
            said.append(f"[{'yellow' if over else 'dim'}]({units.size(row.predicted_bytes)})[/]")
        if row.speed:
            said.append(f"{units.short(row.speed)}/s")
        elif row.roofline:
            said.append(f"[dim]<{units.short(row.roofline)}/s[/]")
        return " ".join(said)
    known = f" [dim]({units.size(row.predicted_bytes)})[/]" if row.predicted_bytes else ""
    return f"[yellow]{row.status}[/]{known}"


def _frontier(found: Frontier) -> str:
    """`48,128`, in parentheses where it is only predicted, with what was measured beside."""
    if not found.ends:
        return f"[dim]({reach(found)})[/]"
    fits = f"{found.fits:,} fits" if found.fits else ""
    fails = f"{found.fails:,} does not" if found.fails else ""
    known = ", ".join(part for part in (fits, fails) if part)
    return known or f"[dim]({reach(found)})[/] [yellow]unconfirmed, {'/'.join(found.ends.values())}[/]"


def compose(study: Study, drawn: Mapping[str, Any]) -> str:
    """report.md."""
    profile, rows = study.profile, study.rows
    lines = [f"# {units.text(profile.name)}: memory and speed against context", ""]
    lines += _overview(findings(study), drawn, "figures")
    lines += ["## Architectures", "", *_architectures(study.plan.items)]
    for (mode, count), members in _by_mode(rows).items():
        lines += [f"## {units.text(_mode(mode, count))}", "", *_rows_table(members)]
    lines += ["## Ends", "", *_ends(rows), "## Method", "", units.text(NOT_MODELLED), ""]
    return "\n".join([*lines, *_card(profile), *_environment(study.wanted), *_traces(study)]) + "\n"


def _overview(found: Sequence[str], drawn: Iterable[str], place: str) -> list[str]:
    """Findings, then figures."""
    lines = [f"- {units.text(line)}" for line in found] + [""]
    for name in drawn:
        lines += [f"![{name}]({place}/{name}.png)", "", f"*{CAPTIONS[name]}*", ""]
    return lines


def section(folder: Path) -> list[str]:
    """What the report of the folder above tells of a profile in `folder`."""
    found = json.loads((folder / "profile.json").read_text(encoding="utf-8"))["findings"]
    drawn = [name for name in CAPTIONS if (folder / "figures" / f"{name}.png").is_file()]
    return _overview(found, drawn, f"{folder.name}/figures")


def _architectures(items: Sequence[Any]) -> list[str]:
    header = ["architecture", "parameters", "published", "dtype", "vocabulary"]
    rows = []
    for item in items:
        model = MODELS.get(item.label.partition(":")[0])
        published = units.count(model.parameters) if model and model.parameters else units.NOTHING
        rows.append([units.code(item.label), f"{item.parameters:,}", published, item.dtype, f"{item.vocab_size:,}"])
    return units.table(header, rows)


def _rows_table(rows: Sequence[Row]) -> list[str]:
    header = ["architecture", "context", "end", "measured", "predicted", "process", "state", "tokens/s", "FLOPs/token"]
    return units.table(header, [
        [
            units.code(row.label),
            f"{row.context:,}",
            row.status or "predicted",
            units.size(row.measured_bytes),
            units.size(row.predicted_bytes) + ("°" if row.predicted.get("extrapolated") else ""),
            units.size(row.process_bytes) + ("†" if row.gap is not None else ""),
            units.size(row.state_bytes),
            _speed(row),
            units.short(row.flops_per_token),
        ]
        for row in rows
    ])  # fmt: skip


def _speed(row: Row) -> str:
    if row.speed:
        return units.short(row.speed)
    return f"< {units.short(row.roofline)}" if row.roofline else units.NOTHING


def _ends(rows: Sequence[Row]) -> list[str]:
    ends = [row for row in rows if row.status not in (None, "done")]
    lines = [
        f"- {units.code(row.label)} {row.mode}{f' x{row.rows}' if row.rows > 1 else ''} at {row.context:,}: "
        f"{row.status}, {units.text(row.reason or '')}"
        for row in ends
    ]
    note = "° by a polynomial through short contexts: the architecture loops over time."
    loops = [note, ""] if any(row.predicted.get("extrapolated") for row in rows) else []
    gaps = [row.gap for row in rows if row.gap is not None]
    widest = f"by up to {max(gaps, key=abs):+.0%} here" if gaps else ""
    apart = [
        f"† the process's peak differs from what was tracked or predicted by more than {GAP:.0%} and "
        f"{units.size(SLACK)}, {widest}: "
        "probably the many nodes of the autograd graph and small blocks that a loop over time makes, which are no "
        "tensors.",
        "",
    ]
    return [*(lines or ["Every point that was tried is done."]), "", *loops, *(apart if gaps else [])]


def _card(profile: Profile) -> list[str]:
    if profile.card == "none":
        return []
    card = CARDS[profile.card]
    peak = f"{card.half / 1e12:g} TFLOPS in half, {card.single / 1e12:g} in single precision"
    return [f"Card: {card.title}, {peak}, {card.bandwidth / 1e9:,.0f} GB/s ({units.text(card.source)}).", ""]


def _traces(study: Study) -> list[str]:
    """Where the traces lie, and what opens them. The plugin is no dependency: it has had no release since 2023."""
    traced = [record["result"] for record in study.wanted if record["kind"] == "traced" and record.get("result")]
    opened_by = (
        "ui.perfetto.dev opens, and so does `tensorboard --logdir traces` where torch-tb-profiler is installed; "
        "it fetches scripts from the network"
    )
    return [f"Trace: `{result['trace']}`, which {opened_by}." for result in traced]


def _environment(records: Sequence[Any]) -> list[str]:
    known = _environments(records)
    if not known:
        return []
    first = known[0]
    return [f"Measured on {units.text(first['device_name'])}, {first['threads']} threads, torch "
            f"{first['versions'].get('torch')}.", ""]  # fmt: skip


def _environments(records: Sequence[Any]) -> list[dict[str, Any]]:
    """What measured points ran on, as far as they could say."""
    found = [record.get("environment") or {} for record in records if record["kind"] == "measured"]
    return [environment for environment in found if "device_name" in environment]


def _flat(row: Row) -> dict[str, Any]:
    tracked = row.measured.get("tracked") or {}
    speed = row.measured.get("speed") or {}
    return {
        "architecture": row.label,
        "mode": row.mode,
        "sequences": row.rows,
        "context": row.context,
        "status": row.status or "predicted",
        "reason": row.reason,
        "measured_bytes": row.measured_bytes,
        "tracked_bytes": tracked.get("peak_bytes"),
        "process_bytes": row.process_bytes,
        "process_before_bytes": row.measured.get("process_before_bytes"),
        "predicted_bytes": row.predicted_bytes,
        "needed_bytes": tracked.get("needed_bytes") or row.predicted.get("needed_bytes"),
        "extrapolated": row.predicted.get("extrapolated"),
        "process_gap": row.gap,
        "trial": row.trial,
        "state_bytes": row.state_bytes,
        "tokens_per_second": speed.get("median"),
        "tokens_per_second_low": speed.get("low"),
        "tokens_per_second_high": speed.get("high"),
        "samples": speed.get("samples"),
        "roofline_tokens_per_second": row.roofline,
        "flops_per_token": row.flops_per_token,
        **{f"{part}_bytes": size for part, size in row.split.items()},
    }


def table_csv(rows: Sequence[Row]) -> str:
    """profile.csv: one row per series and context."""
    flat = [_flat(row) for row in rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in flat for name in row)) or ["architecture"])
    writer.writeheader()
    writer.writerows(flat)
    return buffer.getvalue()
