"""The attentive GRU step by step in plain torch, its attention computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.additive_attention.reference import additive_attention
from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = True
why_not = anywhere


def attentive_gru(*arguments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.attentive_gru`. Returns h (B, T, H), c (B, T, E), the last state (B, H)."""
    return stepwise(additive_attention, *arguments)


def stepwise(
    attention: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], Tensor],
    gates: Tensor,
    queries: Tensor,
    hidden: Tensor,
    weight_context: Tensor,
    weight_hidden: Tensor,
    bias_hidden: Tensor,
    weight_query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same with a backend of additive attention of one's choice."""
    given = (gates, queries, hidden, weight_context, weight_hidden, bias_hidden, weight_query, keys, values, v)
    dtype = compute_dtype(*given)
    gates, queries, h, weight_context, weight_hidden, bias, weight_query, keys, values, v = (
        tensor.to(dtype) for tensor in given
    )
    states, contexts = [], []
    for from_inputs, query in zip(gates.unbind(1), queries.unbind(1), strict=True):
        query = query + h @ weight_query.mT
        context = attention(query[:, None], keys, values, v, mask)[:, 0]
        i_r, i_z, i_n = (from_inputs + context @ weight_context.mT).chunk(3, -1)
        p_r, p_z, p_n = (h @ weight_hidden.mT + bias).chunk(3, -1)
        z = torch.sigmoid(i_z + p_z)
        h = (1 - z) * torch.tanh(i_n + torch.sigmoid(i_r + p_r) * p_n) + z * h
        states.append(h)
        contexts.append(context)
    return torch.stack(states, 1).to(hidden.dtype), torch.stack(contexts, 1).to(hidden.dtype), h.to(hidden.dtype)
