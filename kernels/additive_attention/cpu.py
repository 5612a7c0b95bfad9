"""Additive attention in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. Saved for the backward pass are the arguments and
the weights (B, T, S); the terms of the scores are computed again.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False

_VIEWS = ("query", "key", "value", "v", "context", "dcontext", "dquery", "dkey", "dv")


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def additive_attention(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """See `kernels.additive_attention`. Returns context (B, T, E)."""
    given = query.float(), keys.float(), values.float(), v.float(), mask
    if not native.plain(*given):
        context, _ = attend(*given)
    elif torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given[:4]):
        context = Attention.apply(*given)
    else:
        context, _ = _attend(*given)
    return context.to(values.dtype)


class Attention(torch.autograd.Function):
    """The operator's forward and backward pass in eager mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The operator's inputs; returns the context."""
        context, weights = _attend(*inputs)
        ctx.save_for_backward(weights, *inputs)
        return context

    @staticmethod
    def backward(ctx: Any, dcontext: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs. Second derivatives raise: the operator says so."""
        differentiate = attend_backward if torch.is_grad_enabled() else _differentiated
        return *differentiate(dcontext, *ctx.saved_tensors), None


def _solve(function: str, mask: Tensor | None, weights: Tensor, **tensors: Tensor) -> None:
    """Call a function of the library; all tensors but weights and mask (rows, positions, features), float32."""
    rows, queries, hidden = tensors["query"].shape
    _, keys, width = tensors["value"].shape
    threads = native.threads(8 * rows * queries * keys * hidden)
    mask = None if mask is None else mask.contiguous()
    addresses = 0 if mask is None else mask.data_ptr(), weights.data_ptr()
    problem = [rows, queries, keys, hidden, width, threads, *addresses]
    for name in _VIEWS:
        problem += native.numbers(tensors.get(name), 3)
    native.call(library(), function, problem)


@torch.library.custom_op("archlab::additive_attention_cpu", mutates_args=(), device_types="cpu")
def attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The forward pass, all float32: context (B, T, E), and for the backward pass the weights (B, T, S)."""
    return _attend(query, keys, values, v, mask)


@attend.register_fake
def _attended(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    rows, queries, _ = query.shape
    return query.new_empty(rows, queries, values.shape[2]), query.new_empty(rows, queries, keys.shape[1])


def _attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The operator `attend`, at work."""
    context, weights = results = _attended(query, keys, values, v, mask)
    tensors = {"query": query, "key": keys, "value": values, "v": v[None, None]}
    _solve("additive_attention_forward", mask, weights, **tensors, context=context)
    return results


@torch.library.custom_op("archlab::additive_attention_cpu_backward", mutates_args=(), device_types="cpu")
def attend_backward(
    dcontext: Tensor, weights: Tensor, query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None
) -> list[Tensor]:
    """The gradients of query, keys, values and v."""
    return _differentiated(dcontext, weights, query, keys, values, v, mask)


@attend_backward.register_fake
def _gradients(
    dcontext: Tensor, weights: Tensor, query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None
) -> list[Tensor]:
    return [torch.empty_like(query), torch.empty_like(keys), values.new_empty(values.shape), v.new_empty(v.shape)]


def _differentiated(
    dcontext: Tensor, weights: Tensor, query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None
) -> list[Tensor]:
    """The operator `attend_backward`, at work."""
    weights, dv = weights.contiguous(), v.new_empty(query.shape[0], 1, len(v))
    dquery, dkeys = torch.empty_like(query), torch.empty_like(keys)
    tensors = {"query": query, "key": keys, "value": values, "v": v[None, None], "dcontext": dcontext}
    _solve("additive_attention_backward", mask, weights, **tensors, dquery=dquery, dkey=dkeys, dv=dv)
    return [dquery, dkeys, weights.mT @ dcontext, dv.sum(0).squeeze(0)]


def _save(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(output[1], *inputs)


def _differentiate(ctx: Any, dcontext: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return *attend_backward(dcontext, *ctx.saved_tensors), None


attend.register_autograd(_differentiate, setup_context=_save)
attend_backward.register_autograd(native.no_second_derivatives("additive_attention"))
