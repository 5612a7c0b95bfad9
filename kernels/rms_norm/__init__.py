"""Normalisation by the root of the mean square."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["rms_norm"]

_OP = "rms_norm"


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: str = "auto") -> Tensor:
    """Scale each vector to a mean square of about 1, then each feature by its weight.

        out = x / sqrt(mean(x^2) + eps) weight

    x: (..., D). weight: (D,). Returns (..., D) in the dtype of x, computed in at least float32, differentiable.

    Raises ValueError for shapes that do not fit.
    Source: Zhang & Sennrich 2019, Root mean square layer normalization, equation 4.
    """
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"{_OP}: expected x of shape (..., D), got {tuple(x.shape)}")
    expect(_OP, "weight", weight, "D", x.shape[-1])
    return run(_OP, backend, x, weight, eps)
