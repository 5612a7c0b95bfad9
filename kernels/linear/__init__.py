"""The product with a matrix of weights."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run
from kernels.linear import reference

__all__ = ["linear"]

_OP = "linear"
_WORTH_IT = 2**21
"""Multiply-adds; of fewer, torch's own product is sooner done than a choice is made."""


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, *, backend: str = "auto"
) -> Tensor:
    """Multiply each vector by a matrix, add a bias, and rectify.

        out = x weight^T + bias,  then max(out, 0) if activation

    x: (..., K). weight: (N, K). bias: (N,). activation: None or 'relu'. Returns (..., N), differentiable. With 'auto'
    small products, and all under autocast, are torch's own.

    Raises ValueError for shapes that do not fit and for an unknown activation.
    """
    relu = activation is not None
    torchs_own = x.numel() * len(weight) < _WORTH_IT or (x.is_cpu and torch.is_autocast_enabled("cpu"))
    if backend == "auto" and torchs_own:
        return reference.linear(x, weight, bias, relu)
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        found = f"{tuple(x.shape)} and {tuple(weight.shape)}"
        raise ValueError(f"{_OP}: expected x (..., K) and weight (N, K), got {found}")
    expect(_OP, "bias", bias, "N", len(weight))
    if activation not in (None, "relu"):
        raise ValueError(f"{_OP}: expected activation None or 'relu', got {activation!r}")
    return run(_OP, backend, x, weight, bias, relu)
