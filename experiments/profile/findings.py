"""What a profile comes to, in sentences. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from experiments.profile import analysis
from experiments.profile.frontier import MOST, Frontier
from experiments.profile.models import MODELS, mamba_ssm_state_bytes
from experiments.profile.rows import Row, Series
from experiments.profile.study import Study
from experiments.report import units

_ENDS = {"done": "fits", "oom": "does not"}
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def findings(study: Study) -> list[str]:
    """Sentences: growth laws, crossovers, frontiers, agreement, states."""
    rows = study.rows
    found = [*_laws(rows), *analysis.crossovers(rows)]
    found += [
        f"{_name(one.series)} is predicted to fit {units.size(one.limit)} up to {reach(one)} tokens; {_confirmed(one)}"
        for one in study.frontiers
    ]
    shaken, timed = analysis.unsteady(rows)
    if shaken:
        found.append(
            f"{shaken} of {timed} speeds were unsteady, quartiles more than a factor of {analysis.UNSTEADY} apart: "
            "something else was at work"
        )
    if worst := analysis.disagreement(rows):
        off, row = worst
        found.append(
            f"prediction and tracked measurement differ by at most {off:.2%} "
            f"({row.label} {row.mode} at {row.context:,} tokens)"
        )
    return found + _states(study.plan.items)


def _laws(rows: Sequence[Row]) -> list[str]:
    """How memory grows: a sentence per mode."""
    laws: dict[str, dict[str, list[str]]] = {}
    for series, members in analysis.by_series(rows).items():
        power = analysis.exponent(members)
        if power is not None:
            laws.setdefault(analysis.mode_of(series), {}).setdefault(f"L^{abs(power):.1f}", []).append(series[0])
    return [
        f"{mode}: memory beyond the parameters' grows as "
        + units.listing(f"{law} ({units.listing(labels)})" for law, labels in found.items())
        for mode, found in laws.items()
    ]


def _name(series: Series) -> str:
    """`mamba decode x8`."""
    return f"{series[0]} {analysis.mode_of(series)}"


def _confirmed(found: Frontier) -> str:
    """`confirmed: 1,000 fits, 1,150 does not`, and what a user may do where it is not."""
    said = [f"{context:,} {_ENDS.get(end, f'ended as {end}')}" for context, end in sorted(found.ends.items())]
    longer = "timeout" in found.ends.values()
    remedy = "; a longer --timeout with --retry timeout tries again" if longer else ""
    return f"{found.verdict}{': ' if said else ''}{', '.join(said)}{remedy}"


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


def reach(found: Frontier) -> str:
    """`48,128`: the longest context that is predicted to fit."""
    if found.predicted == MOST:
        return f"beyond {MOST:,}"
    return f"{found.predicted:,}" if found.predicted else "none"
