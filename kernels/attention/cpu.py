"""Softmax attention in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. Saved for the backward pass are arguments, result
and one number per query, the logarithm of the sum in its softmax; the scores are computed again.
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


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def attention(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """See `kernels.attention`. Returns (B, Hq, T, E)."""
    given = query.float(), keys.float(), values.float()
    out, _ = native.run(attend, _attend, _save, _differentiate, given, causal)
    return out.to(query.dtype)


def _solve(function: str, causal: bool, normalizer: Tensor, *tensors: Tensor | None) -> None:
    """Call a function of the library: on query, keys, values, out; backwards also on dout, dquery, dkeys, dvalues."""
    query, keys = tensors[:2]
    assert query is not None
    assert keys is not None
    rows, heads, length, features = keys.shape
    queries = query.shape[1:3].numel()
    problem = [rows, heads, query.shape[1] // heads, query.shape[2], length, features, causal]
    problem.append(native.threads(4 * rows * queries * length * features))
    for tensor in tensors[:4]:
        problem += native.numbers(tensor, 4)
    problem.append(normalizer.data_ptr())
    for tensor in tensors[4:]:
        problem += native.numbers(tensor, 4)
    native.call(library(), function, problem)


@torch.library.custom_op("archlab::attention_cpu", mutates_args=(), device_types="cpu")
def attend(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The forward pass, all float32: out (B, Hq, T, E), and the logarithm of each softmax's sum (B, Hq, T)."""
    return _attend(query, keys, values, causal)


def _attend(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """The operator `attend`, at work."""
    out, normalizer = results = _attended(query, keys, values, causal)
    _solve("attention_forward", causal, normalizer, query, keys, values, out)
    return results


@attend.register_fake
def _attended(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    rows, heads, queries, features = query.shape
    # Heads side by side, as the product that follows wants them.
    out = query.new_empty(rows, queries, heads, features).transpose(1, 2)
    return out, query.new_empty(rows, heads, queries)


@torch.library.custom_op("archlab::attention_cpu_backward", mutates_args=(), device_types="cpu")
def attend_backward(
    dout: Tensor, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, normalizer: Tensor, causal: bool
) -> list[Tensor]:
    """The gradients of query, keys and values."""
    return _attend_backward(dout, query, keys, values, out, normalizer, causal)


def _attend_backward(
    dout: Tensor, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, normalizer: Tensor, causal: bool
) -> list[Tensor]:
    """The operator `attend_backward`, at work."""
    gradients = _gradients(dout, query, keys, values, out, normalizer, causal)
    _solve("attention_backward", causal, normalizer, query, keys, values, out, dout, *gradients)
    return gradients


@attend_backward.register_fake
def _gradients(
    dout: Tensor, query: Tensor, keys: Tensor, values: Tensor, out: Tensor, normalizer: Tensor, causal: bool
) -> list[Tensor]:
    return [torch.empty_like(tensor) for tensor in (query, keys, values)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.causal = inputs
    ctx.save_for_backward(*tensors, *output)


def _differentiate(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    given = dout, *ctx.saved_tensors
    return *native.run_backward(attend_backward, _attend_backward, given, ctx.causal), None


attend.register_autograd(_differentiate, setup_context=_save)
attend_backward.register_autograd(native.no_second_derivatives("attention"))
