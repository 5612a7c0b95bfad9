"""Softmax attention written down directly: all scores are held."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = False
why_not = anywhere


def attention(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """See `kernels.attention`. Returns (B, Hq, T, E)."""
    dtype, groups = compute_dtype(query, keys, values), query.shape[1] // keys.shape[1]
    keys, values = (tensor.to(dtype).repeat_interleave(groups, 1) for tensor in (keys, values))
    scores = query.to(dtype) @ keys.mT * query.shape[3] ** -0.5
    if causal:
        future = torch.ones(scores.shape[2:], dtype=torch.bool, device=query.device).triu(1)
        scores = scores.masked_fill(future, -torch.inf)
    return (scores.softmax(-1) @ values).to(query.dtype)
