"""A checkpoint that survives a kill at any moment, and what is done with one that does not fit."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from experiments import endings

log = logging.getLogger(__name__)


class KillSafe(Checkpoint):
    """Writes the run's checkpoint, replacing the last one atomically, at most every `every` seconds.

    Lightning resumes correctly from the end of a step without a validation, and from the end of a validation; from
    between the two it would skip that validation. So a checkpoint is written at those two moments only.
    """

    def __init__(self, path: Path, sources: str, val_every: int, every: float) -> None:
        self.path, self.sources, self.val_every, self.every = path, sources, val_every, every
        self._written = time.monotonic()

    def usable(self) -> int | None:
        """The step that the checkpoint was written at; None where there is none to resume from.

        One that cannot be read, or that other sources wrote, is set aside under a name that says so.
        """
        if not self.path.exists():
            return None
        try:
            checkpoint = torch.load(self.path, map_location="cpu", weights_only=True)
            step, sources = int(checkpoint["global_step"]), checkpoint["sources"]
        except Exception as error:
            if endings.is_out_of_memory(error):
                # That says nothing of the checkpoint.
                raise
            words = " ".join(str(error).split())[:200]
            _set_aside(self.path, "corrupt", f"cannot be read ({type(error).__name__}: {words})")
            return None
        if sources != self.sources:
            _set_aside(self.path, "stale", "was written by other sources than today's")
            return None
        return step

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["sources"] = self.sources

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step % self.val_every:
            self._write_when_due(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._write_when_due(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """What is left to do after the last step starts from here."""
        self.write(trainer)

    def _write_when_due(self, trainer: lightning.Trainer) -> None:
        due = time.monotonic() - self._written >= self.every
        # All ranks take part in saving, so they must agree on when.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            self.write(trainer)

    def write(self, trainer: lightning.Trainer) -> None:
        """Write the checkpoint so that a kill at any moment leaves the old one or the new one, whole."""
        for logger in trainer.loggers:
            logger.save()
        new = self.path.with_name(self.path.name + ".new")
        try:
            trainer.save_checkpoint(new, weights_only=False)
            if trainer.is_global_zero:
                _sync(new)
                os.replace(new, self.path)
                _sync(self.path.parent)
        except OSError:
            # On a full disk half a file would only make things worse.
            new.unlink(missing_ok=True)
            raise
        self._written = time.monotonic()


def _sync(path: Path) -> None:
    """Wait until the file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _set_aside(path: Path, kind: str, reason: str) -> None:
    aside = path.with_name(f"{path.name}.{kind}")
    os.replace(path, aside)
    log.warning("the checkpoint %s %s: it is kept as %s, and training starts over", path, reason, aside.name)
