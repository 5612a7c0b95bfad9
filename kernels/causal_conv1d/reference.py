"""The causal convolution as a sum of W shifted products: plain torch, differentiable twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = True
why_not = anywhere


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.causal_conv1d`. Returns out (B, D, L) and the last W - 1 columns (B, D, W - 1)."""
    dtype = compute_dtype(x, weight, bias, initial_states)
    length, width = x.shape[2], weight.shape[1]
    if initial_states is None:
        initial_states = x.new_zeros(*x.shape[:2], width - 1)
    columns = torch.cat([initial_states.to(dtype), x.to(dtype)], dim=2)  # (B, D, W - 1 + L)
    out = sum(weight[:, k, None] * columns[:, :, k : k + length] for k in range(width))
    assert isinstance(out, Tensor)
    if bias is not None:
        out = out + bias[:, None]
    out = F.silu(out) if silu else out
    final_states = columns[:, :, length:].to(x.dtype, copy=True)  # a view would keep all columns alive
    return out.to(x.dtype), final_states
