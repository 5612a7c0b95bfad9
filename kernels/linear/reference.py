"""torch's own product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere

RANK = 0
FALLBACK = False
why_not = anywhere


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.linear`. Returns (..., N)."""
    return F.linear(x, weight, bias)
