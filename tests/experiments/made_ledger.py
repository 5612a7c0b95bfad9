"""Ledgers made by hand: records with every part that real ones have, and numbers of the caller's choice."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from experiments import provenance, report
from experiments.cell import Cell
from experiments.config import Train
from experiments.report import study
from experiments.report.units import TIED

TASKS: dict[str, dict[str, Any]] = {
    "reverse": {"train_lengths": [4, 16], "test_lengths": [8, 16, 24, 32]},
    "recall": {"train_lengths": [2, 8], "test_lengths": [4, 8, 12, 16]},
    "text": {"train_lengths": [128, 128], "test_lengths": [32, 128, 256]},
}
ARCHS = ("seq2seq:attention=none", "seq2seq:attention=bahdanau", "transformer", "gqa", "mamba")
RATES = {"seq2seq": 3e-3, "transformer": 1e-3, "gqa": 2e-3, "mamba": 3e-3}


def make_cell(label: str, task: str, seed: int = 0, kind: Any = "train", lr: float | None = None) -> Cell:
    arch = label.partition(":")[0]
    return Cell(
        kind=kind,
        label=label,
        arch=arch,
        arch_config={"d_model": 64, "n_layers": 2, "dropout": 0.0, "learning_rate": RATES.get(arch, 1e-3)},
        task_label=task,
        task=task,
        task_config=TASKS[task],
        seed=seed,
        lr=RATES.get(arch, 1e-3) if lr is None else lr,
        train=Train(steps=1000),
    )


def make_record(cell: Cell, **parts: Any) -> dict[str, Any]:
    """A record that ended well, with `parts` in place of its own; of the present sources unless they say otherwise."""
    record = {
        "version": 1,
        "key": cell.key,
        "kind": cell.kind,
        "status": "done",
        "reason": None,
        "cell": cell.to_json(),
        "ran": {"kernels": {"selective_scan": ["cpu"]} if cell.arch == "mamba" else {}, "loss": "linear_cross_entropy"},
        "data": {"fingerprint": f"{cell.task_label}-seed{cell.seed}", "task": cell.task, "notes": []},
        "environment": {
            "device": "cpu",
            "device_name": "AMD EPYC, 2 cores",
            "precision": "32",
            "threads": 1 if cell.kind == "train" else 2,
            "versions": {"python": "3.11.2", "archlab": "0.1.0", "torch": "2.13.0", "lightning": "2.6.6"},
            "git": "0123456789abcdef0123456789abcdef01234567",
            "platform": "Linux-6.1-x86_64",
        },
        "sources": provenance.sources(cell.arch, cell.task),
        "matching": make_matching(cell),
        "log": f"cells/{cell.key}.log",
        "started": "2025-01-01T00:00:00+00:00",
        "ended": "2025-01-01T00:00:40+00:00",
        "seconds": 40.0,
    }
    return {**record, **parts}


def make_matching(cell: Cell) -> dict[str, Any]:
    value = 100_000 + 700 * (len(cell.label) % 5)
    return {
        "label": cell.label,
        "task_label": cell.task_label,
        "by": "parameters",
        "budget": 100_000,
        "value": value,
        "deviation": value / 100_000 - 1,
        "solved": {"d_model": 64, "d_ff": 170},
        "parameters": value + 5000,
        "core_parameters": value,
    }


def make_scores(task: str, values: Iterable[float]) -> dict[str, dict[str, float]]:
    """{length: metrics} with these headline scores, one per test length."""
    lengths = TASKS[task]["test_lengths"]
    if task == "text":
        return {
            str(length): {"loss": value * math.log(2), "token_accuracy": 1 - value / 8, "bits_per_byte": value}
            for length, value in zip(lengths, values, strict=True)
        }
    return {
        str(length): {"loss": 3 * (1 - value), "token_accuracy": value, "exact_match": value**length}
        for length, value in zip(lengths, values, strict=True)
    }


def make_quality(task: str, values: Iterable[float], solved: int | None = None, points: int = 10) -> dict[str, Any]:
    """Test and validation scores with these headline values, and a curve that ends there."""
    final = list(values)
    start = 4.0 if task == "text" else 0.05
    steps = solved or 1000
    curve = []
    for step in np.linspace(steps / points, steps, points).round().astype(int).tolist():
        share = 1 / (1 + math.exp(-10 * (step / steps - 0.45)))
        scores = make_scores(task, [start + (value - start) * share for value in final])
        curve.append(
            {
                "step": step, "tokens": step * 64 * 33, "seconds": step * 0.03, "train_loss": 3 * (1 - share),
                "validation": scores, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 70_000.0,
            }
        )  # fmt: skip
    return {
        "validation": make_scores(task, final),
        "test": make_scores(task, final),
        "curve": curve,
        "steps": steps,
        "tokens": steps * 64 * 33,
        "examples": steps * 64,
        "steps_to_solve": solved,
        "parameters": 105_000,
        "core_parameters": 100_000,
    }


def make_cost(speed: float = 50_000.0, state: float = 1.0, slope: float = 1.0) -> dict[str, Any]:
    """Throughputs around `speed`; a state of `state` KiB at 128 tokens that grows with context to the power `slope`."""
    return {
        **{
            f"{name}_tokens_per_second": {
                "median": speed * part,
                "low": speed * part * 0.95,
                "high": speed * part * 1.1,
            }
            for name, part in (("train", 1.0), ("prefill", 3.0), ("decode", 0.1))
        },
        "peak_bytes": int(40 * 2**20 + 1000 * state),
        "state_bytes": int(1024 * state / 4**slope),
        "contexts": [
            {
                "context": context,
                "source": context // 2,
                "target": context - context // 2,
                "state_bytes": int(1024 * state * (context / 128) ** slope),
                "activation_bytes": int(7000 * context * (1 + slope * context / 2000)),
            }
            for context in (128, 256, 512, 1024)
        ],
        "parameters": 105_000,
        "core_parameters": 100_000,
    }


def write_ledger(folder: Path, records: Iterable[Mapping[str, Any]], **experiment: Any) -> Path:
    """experiment.yaml with these settings on top of the made tasks and architectures, and one file per record."""
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    settings = {"name": "made", "archs": list(ARCHS), "tasks": ["reverse"], "seeds": 3, **experiment}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    for record in records:
        (folder / "cells" / f"{record['key']}.json").write_text(json.dumps(record))
    return folder


def make_alignment(task: str, blur: float) -> dict[str, Any]:
    """Attention along the anti-diagonal (reverse) or in order, the more spread the greater the blur."""
    columns = 12
    places = np.arange(columns)
    aims = places[::-1] if task == "reverse" else places
    weights = np.exp(-np.abs(aims[:, None] - places[None]) / blur)
    weights /= weights.sum(1, keepdims=True)
    ids = [3 + (7 * place) % 26 for place in range(columns)]
    return {"weights": weights.round(3).tolist(), "source": ids, "target": [1, *(ids[::-1][:-1])]}


def make_runs(label: str, scores: Sequence[float], task: str = "reverse", **parts: Any) -> list[dict[str, Any]]:
    """A record per seed, whose score is the same at every length."""
    return [
        make_record(make_cell(label, task, seed), quality=make_quality(task, [value] * (3 if task == "text" else 4)))
        | parts
        for seed, value in enumerate(scores)
    ]


def markdown(folder: Path) -> str:
    return report.compose(study.read(folder)).replace(TIED, " ")


def section(text: str, title: str) -> str:
    """The lines below a heading; none where there is no such heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def row(text: str, label: str) -> list[str]:
    """The cells of the first table row of a variant."""
    line = next(line for line in text.splitlines() if line.startswith(f"| `{label}` |"))
    return [cell.strip() for cell in line.strip("|").split("|")]
