"""What one cell shows in TensorBoard beside its curves: configuration, hyperparameters, final scores, alignments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from torch.utils.tensorboard.summary import hparams

from experiments import data
from experiments.callbacks import headline
from experiments.cell import Cell, slug
from experiments.module import Learner
from experiments.tasks.contract import Task

FINAL = ("final/loss", "final/accuracy", "final/exact_match", "final/bits_per_byte")
"""Columns of the HParams tab, the same in every cell: TensorBoard takes them from whichever run it reads first."""
WINDOW = 24
"""Most rows and columns of an alignment that are kept."""


def logger(folder: Path, name: str, step: int | None) -> TensorBoardLogger:
    """The event writer of a cell.

    step: where the run resumes. Points that an earlier run wrote after it are purged; all, where it starts over.
    """
    if step is None:
        _clear(folder / name)
        return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False)
    return TensorBoardLogger(folder, name=name, version="", default_hp_metric=False, purge_step=step + 1)


@rank_zero_only
def _clear(folder: Path) -> None:
    for file in folder.glob("events.out.tfevents.*"):
        file.unlink()


def alignment(learner: Learner, seed: int) -> dict[str, Any] | None:
    """Attention on one validation example of the longest trained length, at most 24 x 24.

    {"weights": (T, S) rounded, "source": S ids, "target": T input ids}; None where the family has no attention. Of
    a larger one, the first target tokens and the last source tokens are kept.
    """
    task = learner.task
    trained = [length for length in task.test_lengths if length <= task.train_lengths[1]]
    batch = data.batch(task, seed, "validation", 0, 1, max(trained, default=min(task.test_lengths)))
    batch = learner.transfer_batch_to_device(batch, learner.device, 0)
    with torch.inference_mode():
        weights = learner.backbone.eval().alignments(batch.source, batch.target)
    if weights is None:
        return None
    return {
        "weights": [[round(weight, 3) for weight in row] for row in weights[0, :WINDOW, -WINDOW:].tolist()],
        "source": batch.source.ids[0, -WINDOW:].tolist(),
        "target": batch.target[0, :WINDOW].tolist(),
    }


def write(logger: Logger | None, cell: Cell, task: Task, quality: dict[str, Any]) -> None:
    """What is known at the end of a run: its configuration, its hyperparameters with the final scores, alignments."""
    assert isinstance(logger, TensorBoardLogger)
    writer, step = logger.experiment, quality["steps"]
    writer.add_text(f"{slug(cell.task_label)}/configuration", _configuration(cell), step)
    for part in hparams(_hyperparameters(cell, quality), dict.fromkeys(FINAL)):
        writer.file_writer.add_summary(part)
    for name, value in headline(task, quality["test"]).items():
        writer.add_scalar(f"final/{name}", value, step)
    if quality["alignment"] is not None:
        writer.add_figure(f"{slug(cell.task_label)}/alignment", figure(cell, quality["alignment"]), step, close=False)
    writer.close()


def _configuration(cell: Cell) -> str:
    """Markdown."""
    return f"```yaml\n{yaml.safe_dump(cell.to_json(), sort_keys=False)}```"


def _hyperparameters(cell: Cell, quality: dict[str, Any]) -> dict[str, str | int | float]:
    """Columns of the HParams tab: the same in every cell."""
    return {
        "arch": cell.label,
        "task": cell.task_label,
        "seed": cell.seed,
        "lr": cell.lr,
        "steps": cell.train.steps,
        "batch_size": cell.train.batch_size,
        "precision": cell.train.precision,
        "core_parameters": quality["core_parameters"],
    }


def figure(cell: Cell, alignment: dict[str, Any]) -> Figure:
    """A heat map of one alignment, target tokens downwards and source tokens across."""
    drawn = Figure(figsize=(5, 4.5), layout="constrained")
    axes = drawn.subplots()
    image = axes.imshow(alignment["weights"], cmap="viridis", vmin=0, aspect="auto")
    axes.set_title(f"{cell.label} on {cell.task_label}")
    axes.set_xlabel("source token")
    axes.set_ylabel("decoder input token")
    axes.set_xticks(range(len(alignment["source"])), alignment["source"], rotation=90, fontsize=7)
    axes.set_yticks(range(len(alignment["target"])), alignment["target"], fontsize=7)
    drawn.colorbar(image, label="attention weight")
    return drawn
