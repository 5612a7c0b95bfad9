"""The causal convolution by torch's own grouped convolution (cuDNN's, oneDNN's): wherever no kernel of ours runs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 5
FALLBACK = False
why_not = anywhere


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.causal_conv1d`. Returns out (B, D, L) and the last W - 1 columns (B, D, W - 1)."""
    dtype = compute_dtype(x, weight, bias, initial_states)
    rows, channels, length = x.shape
    if initial_states is None:
        initial_states = x.new_zeros(rows, channels, weight.shape[1] - 1)
    columns = torch.cat([initial_states.to(dtype), x.to(dtype)], 2)  # (B, D, W - 1 + L)
    bias = None if bias is None else bias.to(dtype)
    out = F.conv1d(columns, weight[:, None].to(dtype), bias, groups=channels)
    final_states = columns[:, :, length:].to(x.dtype, copy=True)  # a view would keep all columns alive
    return (F.silu(out) if silu else out).to(x.dtype), final_states
