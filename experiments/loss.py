"""Cross entropy from features, over scored positions only: logits exist for no other position.

With a large vocabulary the logits of a batch are its largest tensor by far, so they are made in chunks there.
Legend: N scored positions, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from experiments.tasks.contract import UNSCORED

Method = Literal["cross_entropy", "linear_cross_entropy", "checkpointed_chunks"]

LARGE_VOCABULARY = 4096
"""From here on logits are made in chunks; below it one plain pass is faster."""
CHUNK = 1024
"""Positions whose logits exist at a time in the checkpointed loop."""


def method(vocab_size: int, label_smoothing: float = 0.0) -> Method:
    """How `cross_entropy` will compute; goes into the record.

    torch's chunked `linear_cross_entropy` (2.13 and later) knows no label smoothing; without it a checkpointed loop
    over chunks does the same in plain torch.
    """
    if vocab_size < LARGE_VOCABULARY:
        return "cross_entropy"
    if label_smoothing or not hasattr(functional, "linear_cross_entropy"):
        return "checkpointed_chunks"
    return "linear_cross_entropy"


def scored_positions(labels: Tensor) -> Tensor:
    """Flat indices (N,) int64 of the labels (B, T) that count."""
    return (labels.flatten() != UNSCORED).nonzero().squeeze(1)


def cross_entropy(features: Tensor, readout: nn.Linear, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy in nats, a float32 (or wider) scalar, of features (N, D) against labels (N,) int64.

    The readout and the softmax run in at least float32, also under autocast: a bfloat16 loss has three digits.
    """
    with torch.autocast(features.device.type, enabled=False):
        features = features.to(torch.promote_types(features.dtype, readout.weight.dtype))
        chosen = method(readout.out_features, label_smoothing)
        if chosen == "linear_cross_entropy":
            return _linear_cross_entropy(features, readout, labels)
        if chosen == "checkpointed_chunks":
            return _checkpointed_chunks(features, readout, labels, label_smoothing)
        return functional.cross_entropy(readout(features), labels, label_smoothing=label_smoothing)


def _linear_cross_entropy(features: Tensor, readout: nn.Linear, labels: Tensor) -> Tensor:
    return functional.linear_cross_entropy(
        features,
        readout.weight,
        labels,
        linear_bias=readout.bias,
        options=torch.nn.LinearCrossEntropyOptions(),
    )


def _checkpointed_chunks(features: Tensor, readout: nn.Linear, labels: Tensor, label_smoothing: float) -> Tensor:
    parts = [
        checkpoint(_chunk, rows, readout, targets, label_smoothing, use_reentrant=False, preserve_rng_state=False)
        for rows, targets in zip(features.split(CHUNK), labels.split(CHUNK), strict=True)
    ]
    return torch.stack(parts).sum() / len(labels)


def _chunk(features: Tensor, readout: nn.Linear, labels: Tensor, label_smoothing: float) -> Tensor:
    return functional.cross_entropy(readout(features), labels, label_smoothing=label_smoothing, reduction="sum")


def predictions(features: Tensor, readout: nn.Linear) -> Tensor:
    """The likeliest token (N,) int64 at each position of features (N, D); logits in chunks."""
    return torch.cat([readout(rows).argmax(-1) for rows in features.split(CHUNK)])
