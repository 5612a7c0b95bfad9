"""Additive attention on GPUs in Triton's language (_triton_kernels.py), compiled by Triton at first use.

Two operators without side effects, each with a fake implementation. The softmax is summed online and the terms of the
scores are computed again in the backward pass: beside the arguments and the context, one number per query is kept.
Inputs of any short dtype are read where they lie; sums are in float32 and in a fixed order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import gpu, native

RANK = 15
FALLBACK = False
why_not = gpu.why_not

_TERMS = 4096  # of a tile


def additive_attention(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See `kernels.additive_attention`. Returns context (B, T, E)."""
    given = (query, keys, values, v, mask)
    eager = gpu.plain(*given) and not native.differentiable(given)
    context, _ = (_attend if eager else attend)(*given)
    return context.to(values.dtype)


def tile_of(query: Tensor, values: Tensor) -> dict[str, int]:
    """The sizes of a tile: a few queries at a time, and as many keys as there is room for beside them."""
    hidden, width = (gpu.power_of_two(tensor.shape[2]) for tensor in (query, values))
    room = max(1, _TERMS // max(hidden, width))
    queries = min(4, room, gpu.power_of_two(query.shape[1]))
    keys = min(64, room // queries, gpu.power_of_two(values.shape[1]))
    return {"BT": queries, "BS": keys, "HP": hidden, "EP": width}


def _shared(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[int, ...]:
    """The strides of the arguments, as every program takes them."""
    return *query.stride(), *keys.stride(), *values.stride(), *v.stride(), *gpu.strides(mask, 2)


@torch.library.custom_op("archlab::additive_attention_triton", mutates_args=())
def attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The forward pass: in float32 the context (B, T, E), and what the backward pass needs of each query (B, T)."""
    return _attend(query, keys, values, v, mask)


@attend.register_fake
def _attended(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, queries, _ = query.shape
    context = query.new_empty(rows, queries, values.shape[2], dtype=torch.float32)
    return context, query.new_empty(rows, queries, dtype=torch.float32)


def _attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator `attend`, at work."""
    context, lse = results = _attended(query, keys, values, v, mask)
    if 0 in (query.numel(), values.numel()):
        return context.zero_(), lse.fill_(torch.inf)
    from kernels.additive_attention import _triton_kernels

    (rows, queries, hidden), (_, length, width), tile = query.shape, values.shape, tile_of(query, values)
    with torch.cuda.device_of(query):
        _triton_kernels.forward[(rows * -(-queries // tile["BT"]),)](
            *(query, keys, values, v, v if mask is None else mask, context, lse, queries, length, hidden, width),
            *_shared(query, keys, values, v, mask),
            HAS_MASK=mask is not None,
            enable_fp_fusion=True,
            **tile,
        )
    return results


@torch.library.custom_op("archlab::additive_attention_triton_backward", mutates_args=())
def attend_backward(
    dcontext: Tensor,
    context: Tensor,
    lse: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> list[Tensor]:
    """The gradients of query, keys, values and v."""
    dquery, dkey, dvalue, dv = results = _gradients(dcontext, context, lse, query, keys, values, v, mask)
    if 0 in (query.numel(), values.numel()):
        return [result.zero_() for result in results]
    from kernels.additive_attention import _triton_kernels

    (rows, queries, hidden), (_, length, width), tile = query.shape, values.shape, tile_of(query, values)
    parts = -(-queries // tile["BT"])
    sum_v = context.new_empty(rows * parts, hidden)
    inner = (dcontext * context).sum(2)
    given = (query, keys, values, v, v if mask is None else mask, lse, inner, dcontext)
    sizes = (queries, length, hidden, width, *_shared(query, keys, values, v, mask), *dcontext.stride())
    flags = {"HAS_MASK": mask is not None, "enable_fp_fusion": True}
    with torch.cuda.device_of(query):
        _triton_kernels.backward_of_queries[(rows * parts,)](
            *given, dquery, sum_v, *sizes, *dquery.stride(), **flags, **tile
        )
        _triton_kernels.backward_of_keys[(rows * -(-length // tile["BS"]),)](
            *given, dkey, dvalue, *sizes, *dkey.stride(), *dvalue.stride(), **flags, **tile
        )
    dv.copy_(sum_v.sum(0))
    return results


@attend_backward.register_fake
def _gradients(
    dcontext: Tensor,
    context: Tensor,
    lse: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (query, keys, values, v)]


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output, *inputs)


def _differentiate(ctx: Any, dcontext: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(dcontext, *ctx.saved_tensors), None


attend.register_autograd(_differentiate, setup_context=_save)
attend_backward.register_autograd(gpu.no_second_derivatives("additive_attention"))
