"""torch's own product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere

RANK = 0
FALLBACK = False
why_not = anywhere


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """See `kernels.linear`. Returns (..., N)."""
    out = F.linear(x, weight, bias)
    return F.relu(out) if relu else out
