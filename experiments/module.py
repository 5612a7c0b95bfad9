"""ANY backbone as a LightningModule: optimiser, schedule, loss and scores, without a branch on the architecture."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Iterable
from typing import Any, Literal

import lightning
import torch
from torch import Tensor, nn

import kernels
from archs.contract import Backbone
from experiments import loss
from experiments.config import Train
from experiments.data import Batch
from experiments.metrics import Metrics, score
from experiments.tasks.contract import Task

PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"32": "32-true", "bf16-mixed": "bf16-mixed"}
"""Our names of precisions, and Lightning's."""
BETAS = (0.9, 0.98)
"""AdamW's, those of Vaswani et al. 2017 (section 5.3): a second moment that settles within a short run."""


class Learner(lightning.LightningModule):
    """One backbone learning one task.

    After each training step `gradient_norm` holds the norm before clipping, a scalar tensor; after each evaluation
    `scores` holds {length: {metric: value}}.
    """

    gradient_norm: Tensor
    metrics: Metrics

    def __init__(self, backbone: Backbone, task: Task, train: Train, *, seed: int, lr: float) -> None:
        super().__init__()
        self.backbone = backbone
        self.task = task
        self.train_config = train
        self.seed = seed
        self.lr = lr
        self.scores: dict[str, dict[str, float]] = {}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of one batch."""
        # Dropout must be a function of (seed, step): a resumed run then draws what an uninterrupted one draws.
        seed_generators(step_seed(self.seed, self.trainer.global_step, self.global_rank), self.device)
        return self.loss(batch)

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross entropy over the batch's scored positions, a scalar."""
        features = self.backbone.features(batch.source, batch.target)
        positions = loss.scored_positions(batch.labels)
        return loss.cross_entropy(
            features.flatten(0, 1).index_select(0, positions),
            self.backbone.readout,
            batch.labels.flatten().index_select(0, positions),
            self.train_config.label_smoothing,
        )

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by the Trainer's norm and keep the norm, which Lightning's own clipping throws away."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        self.gradient_norm = nn.utils.clip_grad_norm_(parameters, gradient_clip_val or math.inf)

    def configure_optimizers(self) -> Any:
        """AdamW; the schedule moves by steps."""
        groups = parameter_groups(self.backbone, self.train_config.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=self.lr, betas=BETAS, fused=True)
        factor = functools.partial(schedule, steps=self.train_config.steps, warmup=warmup_steps(self.train_config))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def learning_rate(self, step: int) -> float:
        """The rate that the given step, counted from 1, is taken with."""
        return self.lr * schedule(step - 1, steps=self.train_config.steps, warmup=warmup_steps(self.train_config))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Score one batch of one length; the loaders come in the order of `task.test_lengths`."""
        self.metrics.update(self.task.test_lengths[dataloader_idx], score(self.backbone, self.task, batch))

    def on_validation_epoch_start(self) -> None:
        self.metrics = Metrics(self.task, self.device)

    def on_validation_epoch_end(self) -> None:
        self.scores = self.metrics.compute()

    test_step = validation_step
    on_test_epoch_start = on_validation_epoch_start
    on_test_epoch_end = on_validation_epoch_end


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """The generator's seed at the start of a training step: neighbouring steps and seeds share nothing."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that a step on the device draws from.

    torch.manual_seed would cost milliseconds: it queues a call, with its stack, for every kind of device not in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def warmup_steps(train: Train) -> int:
    """Steps over which the learning rate rises; at least one."""
    return max(1, round(train.warmup * train.steps))


def schedule(done: int, steps: int, warmup: int) -> float:
    """Factor of the learning rate after `done` steps: a linear rise over `warmup` steps, then a cosine to 0."""
    if done < warmup:
        return (done + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / max(1, steps - warmup))))


def parameter_groups(backbone: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """What decays and what does not.

    Decay acts on tensors of two or more axes (matrices, convolutions, embeddings, as in GPT), never on vectors
    (norms, biases, D, dt bias) nor on parameters that their architecture marks `_no_weight_decay` (A_log).
    """
    parameters = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    return [
        {"params": list(_select(parameters, True)), "weight_decay": weight_decay},
        {"params": list(_select(parameters, False)), "weight_decay": 0.0},
    ]


def _select(parameters: Iterable[nn.Parameter], decays: bool) -> Iterable[nn.Parameter]:
    for parameter in parameters:
        if (parameter.ndim >= 2 and not getattr(parameter, "_no_weight_decay", False)) == decays:
            yield parameter


def ran(task: Task, train: Train) -> dict[str, Any]:
    """Which kernels and which loss have run, and the first slow backend that had to be fallen back on."""
    return {
        "kernels": kernels.ran(),
        "loss": loss.method(task.vocab_size, train.label_smoothing),
        "fallback": next(iter(kernels.fallbacks().values()), None),
    }
