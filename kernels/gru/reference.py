"""The GRU step by step in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = True
why_not = anywhere


def gru(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.gru`. Returns h (B, T, H), the last state (B, H)."""
    given = (inputs, weight_ih, weight_hh, bias_ih, bias_hh, hidden)
    dtype = compute_dtype(*given)
    x, weight_ih, weight_hh, bias_ih, bias_hh, h = (tensor.to(dtype) for tensor in given)
    states = []
    for gates in F.linear(x, weight_ih, bias_ih).unbind(1):
        i_r, i_z, i_n = gates.chunk(3, -1)
        p_r, p_z, p_n = F.linear(h, weight_hh, bias_hh).chunk(3, -1)
        z = torch.sigmoid(i_z + p_z)
        h = (1 - z) * torch.tanh(i_n + torch.sigmoid(i_r + p_r) * p_n) + z * h
        states.append(h)
    return torch.stack(states, 1).to(inputs.dtype), h.to(inputs.dtype)
