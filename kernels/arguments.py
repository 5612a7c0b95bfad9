"""What all operations ask of their arguments."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def expect(op: str, name: str, tensor: Tensor | None, legend: str, *shape: int) -> None:
    """Raise ValueError, naming what was expected, unless the tensor is absent or has this shape.

    legend: the names of the axes, such as 'B, D, L'.
    """
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{op}: expected {name} of shape ({legend}) = {shape}, got {tuple(tensor.shape)}")


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype to compute in: that of the tensors together, and at least float32."""
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None]
    return functools.reduce(torch.promote_types, dtypes, torch.float32)


def anywhere(dtype: torch.dtype | None, device: torch.device | None) -> None:
    """The `why_not` of a backend in plain torch: nothing stands in its way."""
