"""Bahdanau's attention, whose scores are a small network of query and key."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["additive_attention"]

_OP = "additive_attention"


def additive_attention(
    query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None = None, *, backend: str = "auto"
) -> Tensor:
    """Average the values, weighted by how well each key fits the query.

        score_ts = v . tanh(query_t + keys_s)
        context_t = sum_s softmax_s(score_ts) values_s

    query: (B, T, H) and keys: (B, S, H), both already projected. values: (B, S, E). v: (H,).
    mask: (B, S) bool, True = real; None = all real. Returns context (B, T, E) in the dtype of the values; 0 where a
    row has no real key. Computed in at least float32, differentiable in all but the mask; the scores' (B, T, S, H)
    terms are never held together, neither now nor for the backward pass.

    Raises ValueError for shapes that do not fit.
    Source: Bahdanau, Cho & Bengio 2015, Neural machine translation by jointly learning to align and translate, A.1.2.
    """
    _check(query, keys, values, v, mask)
    return run(_OP, backend, query, keys, values, v, mask)


def _check(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> None:
    if query.dim() != 3 or keys.dim() != 3 or values.dim() != 3 or query.shape[1] == 0:
        raise ValueError(
            f"{_OP}: expected query (B, T, H) with T >= 1, keys (B, S, H) and values (B, S, E), "
            f"got {tuple(query.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    rows, _, hidden = query.shape
    length = keys.shape[1]
    expect(_OP, "keys", keys, "B, S, H", rows, length, hidden)
    expect(_OP, "values", values, "B, S, E", rows, length, values.shape[2])
    expect(_OP, "v", v, "H", hidden)
    expect(_OP, "mask", mask, "B, S", rows, length)
    if mask is not None and mask.dtype != torch.bool:
        raise ValueError(f"{_OP}: expected a bool mask with True = real, got {mask.dtype}")
