"""What the benchmarks of training steps share: one vocabulary, one optimiser, and the counts of a step's floor."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from archs import Backbone, Tokens
from experiments import loss
from experiments.bench._measure import Work

VOCABULARY = 64


def random_ids(rows: int, length: int, device: torch.device) -> Tensor:
    """(rows, length) int64; none of them is padding."""
    return torch.randint(3, VOCABULARY, (rows, length), device=device)


def own_step(model: Backbone, source: Tokens, target: Tensor) -> Work:
    """A training step of ours: the loss of features, as in training."""

    def mean_loss() -> Tensor:
        features = model.features(source, target).flatten(0, 1)
        return loss.cross_entropy(features, model.readout, target.flatten())

    return _step(model, mean_loss)


def own_step_over(model: Backbone, ids: Tensor) -> Work:
    """A training step of ours that reads all but the last of ids (B, T + 1), as peers do to predict the next ones."""
    return own_step(model, Tokens(ids[:, :1]), ids[:, 1:-1])


def step(model: nn.Module, logits: Callable[[], Tensor], labels: Tensor) -> Work:
    """A training step of a peer that gives logits (B, T, V)."""
    return _step(model, lambda: F.cross_entropy(logits().flatten(0, 1), labels.flatten()))


def _step(model: nn.Module, mean_loss: Callable[[], Tensor]) -> Work:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def work() -> None:
        mean_loss().backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


def weights(model: nn.Module) -> int:
    """Numbers in the matrices that every token is multiplied by: an embedding is none, unless it reads out too."""
    modules = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
    return sum(p.numel() for module in modules for p in module.parameters(recurse=False) if p.dim() == 2)
