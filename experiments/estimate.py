"""How long a training step takes here, by doing one."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric

from experiments import data, measure, tasks
from experiments.module import PRECISION
from experiments.plan import Entry


def step_seconds(entry: Entry, threads: int) -> float | None:
    """Seconds of one optimiser step of an entry, after three to warm up; None where it does not run here."""
    torch.set_num_threads(threads)
    cell = entry.cell("train", entry.rates[0])
    task = tasks.make(cell.task, **cell.task_config)
    try:
        fabric = Fabric(accelerator=cell.train.accelerator, devices=1, precision=PRECISION[cell.train.precision])
        batch = fabric.to_device(data.batch(task, cell.seed, "train", 0, cell.train.batch_size))
        bench, _ = measure.built(cell, task, fabric, batch)
        return bench.timed(bench.train_step)
    except (RuntimeError, MemoryError):
        return None
