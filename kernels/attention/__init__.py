"""Softmax attention, causal or not, with grouped heads."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["attention"]

_OP = "attention"


def attention(query: Tensor, keys: Tensor, values: Tensor, causal: bool = False, *, backend: str = "auto") -> Tensor:
    """Average the values, weighted by how well each key fits the query.

        out_t = sum_s softmax_s(query_t . keys_s / sqrt(E)) values_s        over s <= t if causal, else over all

    query: (B, Hq, T, E), keys and values: (B, H, S, E), Hq a multiple of H: heads of queries share the keys' in groups.
    causal: needs T = S. Any strides. Returns (B, Hq, T, E) in the dtype of the query, differentiable in all three.

    Raises ValueError for shapes that do not fit.
    Source: Vaswani et al. 2017, section 3.2.1; Ainslie et al. 2023, GQA, section 2.2.
    """
    _check(query, keys, values, causal)
    return run(_OP, backend, query, keys, values, causal)


def _check(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> None:
    if query.dim() != 4 or keys.dim() != 4 or 0 in (*query.shape, *keys.shape) or query.shape[1] % keys.shape[1]:
        raise ValueError(
            f"{_OP}: expected query (B, Hq, T, E) and keys (B, H, S, E) with Hq a multiple of H, none of them empty, "
            f"got {tuple(query.shape)} and {tuple(keys.shape)}"
        )
    heads, length = keys.shape[1:3]
    expect(_OP, "keys", keys, "B, H, S, E", query.shape[0], heads, length, query.shape[3])
    expect(_OP, "values", values, "B, H, S, E", *keys.shape)
    if causal and query.shape[2] != length:
        raise ValueError(f"{_OP}: expected as many queries as keys where causal, got {query.shape[2]} and {length}")
