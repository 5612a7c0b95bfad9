"""Cells small enough to train in a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.cell import Cell
from experiments.config import Cost, Train

ARCH = str(Path(__file__).parent / "toy_arch.py")
TRAIN = {"steps": 12, "batch_size": 8, "val_every": 4, "val_examples": 16, "test_examples": 16, "accelerator": "cpu"}
TASK = {"train_lengths": [2, 3], "test_lengths": [3, 5], "symbols": 8}


def cell(*, train: dict[str, Any] | None = None, task: str = "reverse", **fields: Any) -> Cell:
    """A toy on a short `reverse`; train: fields of Train that differ."""
    defaults: dict[str, Any] = {
        "kind": "train",
        "label": "toy",
        "arch": ARCH,
        "arch_config": {"d_model": 16},
        "task_label": task,
        "task": task,
        "task_config": TASK,
        "seed": 0,
        "lr": 1e-2,
        "train": Train(**{**TRAIN, **(train or {})}),
        "cost": Cost(contexts=(8, 16), batch_size=4, seconds=0.02),
    }
    return Cell(**{**defaults, **fields})


def ignore(progress: dict[str, Any]) -> None:
    """A report that nobody reads."""
