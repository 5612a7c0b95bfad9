"""One step of the causal convolution in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = False
why_not = anywhere


@torch.no_grad()
def causal_conv1d_update(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `kernels.causal_conv1d_update_`. Returns out (B, D)."""
    dtype = compute_dtype(x, states, weight, bias)
    columns = torch.cat([states.to(dtype), x.to(dtype)[..., None]], 2)  # (B, D, W)
    out = (columns * weight).sum(2)
    if bias is not None:
        out = out + bias
    states.copy_(columns[..., 1:])
    return (F.silu(out) if silu else out).to(x.dtype)
