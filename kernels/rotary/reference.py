"""The rotation in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = False
why_not = anywhere


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary`. Returns (B, H, T, E)."""
    first, second = x.to(compute_dtype(x, cos)).chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
