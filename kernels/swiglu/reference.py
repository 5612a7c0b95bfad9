"""The gate in plain torch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = False
why_not = anywhere


def swiglu(x: Tensor) -> Tensor:
    """See `kernels.swiglu`. Returns (..., E)."""
    gate, up = x.to(compute_dtype(x)).chunk(2, -1)
    return (F.silu(gate) * up).to(x.dtype)
