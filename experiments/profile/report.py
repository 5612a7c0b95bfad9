"""The report of a profile: tables, findings, figures, Markdown, HTML, CSV and JSON. No torch."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from experiments import ledger
from experiments.profile import analysis, config, figures
from experiments.profile.cards import CARDS
from experiments.profile.config import Profile
from experiments.profile.models import MODELS, mamba_ssm_state_bytes
from experiments.profile.rows import Row
from experiments.report import figures as files
from experiments.report import html, style, units

ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
CAPTIONS = {
    "memory": "Peak memory against context, both logarithmic; exponents are fitted to the four "
    "longest contexts, beyond parameters, gradients and optimiser.",
    "speed": "Measured tokens per second (source + target); bands reach from the lower to the upper quartile.",
    "split": "What the peak is made of, at the longest context that all have.",
}
NOT_MODELLED = (
    "A prediction runs the model on fake tensors and follows every storage. Not modelled: scratch memory within "
    "library kernels (cuBLAS, cuDNN, attention workspaces), the CUDA context, the allocator's rounding and "
    "fragmentation, and a card's own kernels, for which those of the CPU stand in: ours compute in float32 there. "
    "Roofline speed is a bound, not an estimate: each operation by itself, limited by the card's peak FLOPs or "
    "bandwidth."
)


def write(folder: Path, profile: Profile, items: Sequence[Any], rows: Sequence[Row], records: Sequence[Any]) -> None:
    """report.md, report.html, profile.json, profile.csv and figures/ from what is known."""
    drawn = figures.draw(rows, config.limit(profile) if _limited(profile) else None)
    files.save(drawn, folder / "figures")
    markdown = compose(profile, items, rows, drawn, records)
    looks = style.looks({row.label: row.arch for row in rows})
    page = html.page(markdown, folder, {label: look.colour for label, look in looks.items()})
    ledger.write_text(folder / "report.md", markdown)
    ledger.write_text(folder / "report.html", page)
    ledger.write_json(folder / "profile.json", {
        "profile": config.to_dict(profile),
        "rows": [_flat(row) for row in rows],
        "exponents": {" ".join(map(str, s)): analysis.exponent(r) for s, r in analysis.by_series(rows).items()},
        "findings": findings(profile, items, rows),
        "environment": next(iter(_environments(records)), None),
    })  # fmt: skip
    ledger.write_text(folder / "profile.csv", table_csv(rows))


def _limited(profile: Profile) -> bool:
    return profile.card != "none" or profile.memory_limit not in ("auto", "none")


def tables(profile: Profile, rows: Sequence[Row]) -> list[Table]:
    """One for each mode and number of sequences: contexts down, architectures across."""
    found = []
    for (mode, count), members in _by_mode(rows).items():
        table = Table(
            title=_mode(mode, count), title_justify="left", title_style="bold", box=box.SIMPLE, pad_edge=False
        )
        table.add_column("context", justify="right")
        labels = list(dict.fromkeys(row.label for row in members))
        for label in labels:
            table.add_column(escape(label), justify="right")
        for context in sorted({row.context for row in members}):
            cells = {row.label: row for row in members if row.context == context}
            table.add_row(f"{context:,}", *(_cell(cells.get(label), config.limit(profile)) for label in labels))
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


def findings(profile: Profile, items: Sequence[Any], rows: Sequence[Row]) -> list[str]:
    """Sentences: growth laws, crossovers, agreement, states."""
    found = []
    for series, members in analysis.by_series(rows).items():
        power = analysis.exponent(members)
        if power is not None:
            longest = max(row.context for row in members if row.bytes)
            name = f"{series[0]} {series[1]}{f' x{series[2]}' if series[2] > 1 else ''}"
            found.append(f"{name}: memory beyond the parameters' ~ L^{power:.1f} up to {longest:,} tokens")
    found += analysis.crossovers(rows)
    if worst := analysis.disagreement(rows):
        off, row = worst
        found.append(
            f"prediction and tracked measurement differ by at most {off:.2%} "
            f"({row.label} {row.mode} at {row.context:,} tokens)"
        )
    return found + _states(items)


def _states(items: Sequence[Any]) -> list[str]:
    """Both layouts of a published Mamba's state."""
    found = []
    for item in items:
        if item.arch == "mamba" and item.label.partition(":")[0] in MODELS:
            c = item.settings
            size = ITEM_BYTES[item.dtype]
            channels = c["d_inner"] or 2 * c["d_model"]
            ours = c["n_layers"] * channels * (c["d_conv"] - 1 + c["d_state"]) * size
            full = c["n_layers"] * channels * ((c["d_conv"] - 1) * size + c["d_state"] * 4)
            found.append(
                f"{item.label}: state {ours / 2**20:.2f} MiB with {c['d_conv'] - 1} kept convolution columns (ours), "
                f"{mamba_ssm_state_bytes(c, size) / 2**20:.2f} MiB with {c['d_conv']} (mamba_ssm), "
                f"{full / 2**20:.2f} MiB with a float32 state (state_dtype=float32)"
            )
    return found


def compose(
    profile: Profile, items: Sequence[Any], rows: Sequence[Row], drawn: Mapping[str, Any], records: Sequence[Any]
) -> str:
    """report.md."""
    lines = [f"# {units.text(profile.name)}: memory and speed against context", ""]
    lines += [f"- {units.text(line)}" for line in findings(profile, items, rows)] + [""]
    for name in drawn:
        lines += [f"![{name}](figures/{name}.png)", "", f"*{CAPTIONS[name]}*", ""]
    lines += ["## Architectures", "", *_architectures(items)]
    for (mode, count), members in _by_mode(rows).items():
        lines += [f"## {units.text(_mode(mode, count))}", "", *_rows_table(members)]
    lines += ["## Ends", "", *_ends(rows), "## Method", "", units.text(NOT_MODELLED), ""]
    return "\n".join([*lines, *_card(profile), *_environment(records)]) + "\n"


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
            units.size(row.measured.get("process_bytes")),
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
    return [*(lines or ["Every point that was tried is done."]), "", *loops]


def _card(profile: Profile) -> list[str]:
    if profile.card == "none":
        return []
    card = CARDS[profile.card]
    peak = f"{card.half / 1e12:g} TFLOPS in half, {card.single / 1e12:g} in single precision"
    return [f"Card: {card.title}, {peak}, {card.bandwidth / 1e9:,.0f} GB/s ({units.text(card.source)}).", ""]


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
        "process_bytes": row.measured.get("process_bytes"),
        "predicted_bytes": row.predicted_bytes,
        "needed_bytes": tracked.get("needed_bytes") or row.predicted.get("needed_bytes"),
        "extrapolated": row.predicted.get("extrapolated"),
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
