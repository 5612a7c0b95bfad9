"""Scores of a batch, and their means per length."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import MeanMetric

import archs
from archs.contract import Backbone
from experiments import loss
from experiments.data import Batch
from experiments.tasks.contract import Task

Score = dict[str, tuple[Tensor, int]]
"""Of one batch: {metric: (its mean, a scalar tensor; what it is the mean over)}."""


def score(backbone: Backbone, task: Task, batch: Batch) -> Score:
    """Teacher-forced loss in nats, and accuracy: of greedy generation where the task generates, else in one pass."""
    features = backbone.features(batch.source, batch.target).flatten(0, 1)
    positions = loss.scored_positions(batch.labels)
    features = features.index_select(0, positions)
    labels = batch.labels.flatten().index_select(0, positions)
    if task.generates:
        predicted = generated(backbone, batch).flatten().index_select(0, positions)
    else:
        predicted = loss.predictions(features, backbone.readout)
    right = predicted == labels
    return {
        "loss": (loss.cross_entropy(features, backbone.readout, labels), len(labels)),
        "token_accuracy": (right.float().mean(), len(labels)),
        "exact_match": (_rows(right, positions, batch.labels).float().mean(), len(batch.labels)),
    }


def generated(backbone: Backbone, batch: Batch) -> Tensor:
    """Greedy answers, (B, T) int64 as wide as the labels."""
    columns = batch.labels.shape[1]
    answers = archs.greedy(backbone, batch.source, columns)
    # Generation may end early, when every row has said EOS; what was never said is wrong, and no token is -1.
    return functional.pad(answers, (0, columns - answers.shape[1]), value=-1)


def _rows(right: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
    """(B,) bool, the rows whose scored positions are all right."""
    full = torch.ones_like(labels, dtype=torch.bool).flatten().index_copy(0, positions, right)
    return full.view_as(labels).all(1)


class Metrics:
    """Running means of the scores at each test length of a task; synchronised over devices when read."""

    def __init__(self, task: Task, device: torch.device) -> None:
        self._names = {"loss", "token_accuracy", *task.metrics}
        self._means = {length: _means(device) for length in task.test_lengths}

    def update(self, length: int, score: Score) -> None:
        """Add one batch of the given length."""
        for name, (value, weight) in score.items():
            self._means[length][name].update(value, weight)

    def compute(self) -> dict[str, dict[str, float]]:
        """{length: {metric: value}}: loss, token accuracy, and whatever else the task names."""
        return {str(length): self._values(means) for length, means in self._means.items()}

    def _values(self, means: dict[str, MeanMetric]) -> dict[str, float]:
        values = {name: float(mean.compute()) for name, mean in means.items()}
        # A text's tokens are its bytes.
        values["bits_per_byte"] = values["loss"] / math.log(2)
        return {name: value for name, value in values.items() if name in self._names}


def _means(device: torch.device) -> dict[str, MeanMetric]:
    # A NaN stays one: a loss that is not finite must show as such. (The strategy "disable" would drop the weights.)
    names = ("loss", "token_accuracy", "exact_match")
    return {name: MeanMetric(nan_strategy=math.nan).to(device) for name in names}
