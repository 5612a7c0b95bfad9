"""Bahdanau's attention in plain torch: a loop over queries, each recomputed in the backward pass."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = True
why_not = anywhere


def additive_attention(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See `kernels.additive_attention`. Returns context (B, T, E)."""
    dtype = compute_dtype(query, keys, values, v)
    inputs = keys.to(dtype), values.to(dtype), v.to(dtype), mask
    contexts = [
        # what autograd would keep of a query, (B, S, H), is cheaper to compute again than to hold for every query
        checkpoint(_attend, q, *inputs, use_reentrant=False, preserve_rng_state=False)
        for q in query.to(dtype).unbind(1)
    ]
    return torch.stack(contexts, dim=1).to(values.dtype)


def _attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Context (B, E) of one query (B, H)."""
    scores = (torch.tanh(query[:, None] + keys) * v).sum(-1)  # (B, S)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=1)
    if mask is not None:
        weights = weights * mask  # a row without a real key: equal weights -> 0
    return (weights[:, :, None] * values).sum(1)
