"""The curve of a run, in its record and in TensorBoard, and what follows from it: going on, stopping, giving up."""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from experiments.config import Train
from experiments.module import Learner, warmup_steps
from experiments.tasks.contract import Task

Curve = list[dict[str, Any]]
Report = Callable[[dict[str, Any]], None]

LOG_EVERY = 20
"""Steps between TensorBoard points of the training loss."""
SOLVED = 0.99
"""Exact match at every trained length, at two evaluations running."""
DIVERGED = 3.0
"""Mean training loss between two evaluations, after the warm-up, in units of a uniform guess's: beyond all hope."""


class Diverged(ArithmeticError):
    """Training cannot go on: the loss is not finite, or far above that of guessing.

    quality: what the record says of the training until then.
    """

    quality: dict[str, Any] | None = None


class Recorder(Callback):
    """The curve of a run and what is said of it while it runs; its state is a part of the checkpoint.

    tag: prefix of the TensorBoard tags. report: told of progress at every step.
    """

    def __init__(self, task: Task, train: Train, tag: str, report: Report) -> None:
        self.task, self.train, self.tag, self.report = task, train, tag, report
        self.curve: Curve = []
        self.tokens = 0
        self.seconds = 0.0
        """Spent in training steps, evaluations apart, over all runs of the cell."""
        self.losses: list[float] = []
        """Of every step since the last evaluation."""
        self.norms: list[float] = []
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._strategy: Strategy
        self._since: float | None = None
        self._logged = (0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and lists: safe to load with weights_only."""
        self._collect()
        self._stop_clock(resume=True)
        names = ("curve", "tokens", "seconds", "losses", "norms")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
        self._logged = (self.tokens, self.seconds)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """A run that was killed after it had solved its task has nothing left to train."""
        self._strategy = trainer.strategy
        trainer.should_stop = self._may_stop()

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the step; what needs the numbers themselves waits for the next log, since it makes a GPU wait."""
        assert isinstance(pl_module, Learner)
        step = trainer.global_step
        self._pending.append((outputs["loss"], pl_module.gradient_norm))
        self.tokens += (batch.source.ids.numel() + batch.target.numel()) * trainer.world_size
        if step % LOG_EVERY == 0:
            self._log_training(trainer, pl_module, step)
        self._say("train", step)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._collect()
        self._stop_clock()
        self._say("validate", trainer.global_step)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """One more point of the curve, and what follows from it."""
        assert isinstance(pl_module, Learner)
        step = trainer.global_step
        self.curve.append(self._point(step, pl_module))
        self._log_validation(trainer, step)
        self._check_divergence(step)
        self.losses, self.norms = [], []
        trainer.should_stop = self._may_stop()
        self._since = time.perf_counter()

    def on_test_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._say("test", self.steps)

    @property
    def steps(self) -> int:
        """Training steps taken at the last evaluation."""
        return self.curve[-1]["step"] if self.curve else 0

    @property
    def steps_to_solve(self) -> int | None:
        """The first of two evaluations running at which every trained length was solved; None if never."""
        running = (before["step"] for before, after in pairwise(self.curve) if self._solved(before, after))
        return next(running, None)

    def _solved(self, *points: dict[str, Any]) -> bool:
        lengths = [str(length) for length in self.task.test_lengths if length <= self.task.train_lengths[1]]
        if "exact_match" not in self.task.metrics or not lengths:
            return False
        return all(point["validation"][length]["exact_match"] >= SOLVED for point in points for length in lengths)

    def _may_stop(self) -> bool:
        return self.train.stop_when_solved and self.steps_to_solve is not None

    def _point(self, step: int, learner: Learner) -> dict[str, Any]:
        before = self.curve[-1] if self.curve else {"tokens": 0, "seconds": 0}
        return {
            "step": step,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "train_loss": _mean(self.losses),
            "validation": learner.scores,
            "lr": learner.learning_rate(step),
            "grad_norm": _mean(self.norms),
            "tokens_per_second": _rate(self.tokens - before["tokens"], self.seconds - before["seconds"]),
        }

    def _collect(self) -> None:
        """Turn the tensors of the last steps into numbers, with one wait for the devices; all ranks see the same."""
        if not self._pending:
            return
        numbers = torch.stack([torch.stack([loss, norm.to(loss)]) for loss, norm in self._pending])
        self._pending = []
        for loss, norm in self._strategy.reduce(numbers, reduce_op="mean").tolist():
            self.losses.append(loss)
            self.norms.append(norm)
            if not (math.isfinite(loss) and math.isfinite(norm)):
                step = self.steps + len(self.losses)
                raise Diverged(f"the loss was {loss:g} and the gradient norm {norm:g} at step {step}")

    def _check_divergence(self, step: int) -> None:
        bound = DIVERGED * math.log(self.task.vocab_size)
        if step > warmup_steps(self.train) and _mean(self.losses) > bound:
            raise Diverged(
                f"the training loss was {_mean(self.losses):.3g} at step {step}, "
                f"more than {DIVERGED:g} times that of a uniform guess"
            )

    def _stop_clock(self, resume: bool = False) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
            self._since = now if resume else None

    def _say(self, phase: str, step: int) -> None:
        loss = self.losses[-1] if self.losses else self.curve[-1]["train_loss"] if self.curve else None
        self.report({"phase": phase, "step": step, "steps": self.train.steps, "loss": loss})

    def _log_training(self, trainer: lightning.Trainer, learner: Learner, step: int) -> None:
        self._collect()
        self._stop_clock(resume=True)
        tokens, seconds = self._logged
        self._logged = (self.tokens, self.seconds)
        scalars = {
            "loss": _mean(self.losses[-LOG_EVERY:]),
            "lr": learner.learning_rate(step),
            "grad_norm": _mean(self.norms[-LOG_EVERY:]),
            "tokens_per_second": _rate(self.tokens - tokens, self.seconds - seconds),
            "memory_GiB": memory(learner.device) / 2**30,
        }
        self._log(trainer, {f"train/{name}": value for name, value in scalars.items()}, step)

    def _log_validation(self, trainer: lightning.Trainer, step: int) -> None:
        scores = self.curve[-1]["validation"]
        self._log(trainer, {f"val/{name}": value for name, value in headline(self.task, scores).items()}, step)
        each = {f"val/{name}/length_{length}": value for length, row in scores.items() for name, value in row.items()}
        self._log(trainer, each, step)

    def _log(self, trainer: lightning.Trainer, scalars: dict[str, float], step: int) -> None:
        if trainer.logger is not None:
            trainer.logger.log_metrics({f"{self.tag}/{name}": value for name, value in scalars.items()}, step)


def headline(task: Task, scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Means over the trained lengths (all lengths where none is trained) of each metric.

    `accuracy` is the token accuracy.
    """
    trained = [str(length) for length in task.test_lengths if length <= task.train_lengths[1]]
    rows = [scores[length] for length in trained or scores]
    return {name.removeprefix("token_"): _mean([row[name] for row in rows]) for name in rows[0]}


def memory(device: torch.device) -> int:
    """Bytes at the peak so far: the allocator's on a GPU, the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else math.nan
