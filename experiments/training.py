"""Train one cell with Lightning, resuming where an earlier run of it was killed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.warnings import PossibleUserWarning

import archs
import kernels
from experiments import board, malloc, match, provenance, ranks, tasks
from experiments.callbacks import Diverged, Recorder, Report
from experiments.cell import Cell, slug
from experiments.checkpoint import KillSafe
from experiments.data import DataModule
from experiments.module import PRECISION, Learner, ran
from experiments.tasks.contract import Task


@dataclass
class Run:
    """The parts of one training run."""

    cell: Cell
    folder: Path
    task: Task
    learner: Learner
    data: DataModule
    recorder: Recorder
    trainer: lightning.Trainer
    resume_from: Path | None


def train(cell: Cell, folder: Path, report: Report, checkpoint_every: float = 30.0) -> dict[str, Any]:
    """Train, validate and test a cell; the record's "quality" and "ran".

    folder: the experiment's; events go to tb/, and cells/<key>.ckpt is both resumed from and written, at most every
    `checkpoint_every` seconds; it is left for the caller to delete. report: told of progress at every step.
    Raises Diverged, with the curve so far in its `quality`, when the loss is not finite or far above that of guessing.
    """
    kernels.forget()
    malloc.keep_freed()
    saver = KillSafe(
        folder / "cells" / f"{cell.key}.ckpt",
        sources=provenance.sources(cell.arch, cell.task),
        val_every=cell.train.val_every,
        every=checkpoint_every,
    )
    step = saver.usable()  # before other ranks look for the checkpoint too
    with ranks.joined(cell, folder, checkpoint_every):
        run = prepare(cell, folder, report, saver, step)
        final = _finished(run)
    if run.trainer.is_global_zero:
        board.write(run.trainer.logger, cell, run.task, final)
    return {"quality": final, "ran": ran(run.task, cell.train)}


def _finished(run: Run) -> dict[str, Any]:
    """The quality of a run that is trained to its end, validated and tested."""
    try:
        with quiet():
            _fit(run)
            run.trainer.test(run.learner, datamodule=run.data, verbose=False)
    except Diverged as error:
        error.quality = quality(run)
        raise
    return {**quality(run), "test": run.learner.scores, "alignment": board.alignment(run.learner, run.cell.seed)}


def prepare(cell: Cell, folder: Path, report: Report, saver: KillSafe, step: int | None) -> Run:
    """Build everything that a run needs, from the cell's seed; nothing is trained yet.

    step: where the saver's checkpoint was written; None starts from the beginning.
    """
    lightning.seed_everything(cell.seed, verbose=False)
    task = tasks.make(cell.task, **cell.task_config)
    backbone = archs.build(cell.arch, task.vocab_size, **cell.arch_config)
    recorder = Recorder(task, cell.train, slug(cell.task_label), report)
    return Run(
        cell=cell,
        folder=folder,
        task=task,
        learner=Learner(backbone, task, cell.train, seed=cell.seed, lr=cell.lr),
        data=_data(task, cell),
        recorder=recorder,
        trainer=_trainer(cell, folder, [recorder, saver], board.logger(folder / "tb", cell.folder_name, step)),
        resume_from=None if step is None else saver.path,
    )


def _data(task: Task, cell: Cell) -> DataModule:
    train = cell.train
    return DataModule(
        task,
        seed=cell.seed,
        batch_size=train.batch_size,
        val_examples=train.val_examples,
        test_examples=train.test_examples,
    )


def _trainer(cell: Cell, folder: Path, callbacks: list[Any], logger: TensorBoardLogger) -> lightning.Trainer:
    """A Trainer that counts steps, not epochs, with everything off that costs time at each of them."""
    train = cell.train
    return lightning.Trainer(
        accelerator=train.accelerator,
        devices=train.devices,
        strategy=train.strategy,
        precision=PRECISION[train.precision],
        max_steps=train.steps,
        max_epochs=-1,
        val_check_interval=train.val_every,
        check_val_every_n_epoch=None,
        gradient_clip_val=train.clip or None,
        logger=logger,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _fit(run: Run) -> None:
    """All steps, and an evaluation after the last one wherever it falls."""
    run.trainer.fit(run.learner, datamodule=run.data, ckpt_path=run.resume_from, weights_only=True)
    if run.recorder.steps != run.trainer.global_step:
        run.trainer.validate(run.learner, datamodule=run.data, verbose=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Lightning's advice to use more loader processes is not for us: a batch costs less than handing it over."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)
        yield


def quality(run: Run) -> dict[str, Any]:
    """What a record says of the training so far."""
    curve = run.recorder.curve
    steps = run.recorder.steps
    backbone = run.learner.backbone
    return {
        "validation": curve[-1]["validation"] if curve else {},
        "curve": curve,
        "steps": steps,
        "tokens": curve[-1]["tokens"] if curve else 0,
        "examples": steps * run.cell.train.batch_size,
        "steps_to_solve": run.recorder.steps_to_solve,
        "parameters": match.parameters(backbone),
        "core_parameters": match.core_parameters(backbone),
    }
