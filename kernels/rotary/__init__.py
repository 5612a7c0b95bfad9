"""Rotary position embedding."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["rotary"]

_OP = "rotary"


def rotary(x: Tensor, cos: Tensor, sin: Tensor, *, backend: str = "auto") -> Tensor:
    """Turn each pair of features (i, i + E / 2) by its position's angle.

        out_i = x_i cos_i - x_{i + E/2} sin_i,  out_{i + E/2} = x_{i + E/2} cos_i + x_i sin_i

    x: (B, H, T, E), any strides. cos, sin: (B or 1, 1, T, E / 2). Returns (B, H, T, E) in the dtype of x, computed in
    at least float32, differentiable in x.

    Raises ValueError for shapes that do not fit.
    Source: Su et al. 2021, RoFormer, section 3.2.2.
    """
    if x.dim() != 4 or x.shape[3] % 2:
        raise ValueError(f"{_OP}: expected x of shape (B, H, T, E) with E even, got {tuple(x.shape)}")
    rows = 1 if cos.shape[:1] == (1,) else x.shape[0]
    for name, tensor in {"cos": cos, "sin": sin}.items():
        expect(_OP, name, tensor, "B or 1, 1, T, E / 2", rows, 1, x.shape[2], x.shape[3] // 2)
    return run(_OP, backend, x, cos, sin)
