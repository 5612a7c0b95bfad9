"""The attentive GRU in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. The recurrence alone is in them: the gradients of
the weights are products over all steps, taken at once. Saved are the arguments, the weights of the attention (B, T, S)
and the gates; the terms of the scores are computed again.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build, native
from kernels.gru.cpu import padded, states_before

RANK = 20
FALLBACK = False


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def attentive_gru(
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
    """See `kernels.attentive_gru`. Returns h (B, T, H), c (B, T, E), the last state (B, H)."""
    size, width = hidden.shape[1], values.shape[2]
    states, contexts, *_ = recur(
        padded(gates, thirds=True),
        padded(queries),
        padded(hidden),
        padded(padded(weight_context).mT, thirds=True).mT,
        padded(padded(weight_hidden).mT, thirds=True).mT,
        padded(bias_hidden, thirds=True),
        padded(padded(weight_query).mT).mT,
        padded(keys),
        padded(values),
        padded(v),
        mask,
    )
    states, contexts = states[..., :size].to(hidden.dtype), contexts[..., :width].to(hidden.dtype)
    return states, contexts, states[:, -1].clone()  # a view would keep all states alive


def _solve(function: str, steps: int, mask: Tensor | None, *tensors: Tensor | None) -> None:
    """Call a function of the library; the tensors in the order of its structure."""
    tensors = tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
    first, key, value = tensors[2:5]
    assert first is not None
    assert key is not None
    assert value is not None
    rows, keys, units = key.shape
    threads = native.threads(8 * rows * steps * (keys + 64) * units)
    mask = None if mask is None else mask.contiguous()
    problem = [rows, steps, keys, first.shape[1], units, value.shape[2], threads]
    problem += [0 if tensor is None else tensor.data_ptr() for tensor in (mask, *tensors)]
    native.call(library(), function, problem)


@torch.library.custom_op("archlab::attentive_gru_cpu", mutates_args=(), device_types="cpu")
def recur(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The forward pass, all float32: h (B, T, H), c (B, T, E), the attention's weights (B, T, S), gates (B, T, 4 H)."""
    results = _results(
        gates, queries, hidden, weight_context, weight_hidden, bias_hidden, weight_query, keys, values, v, mask
    )
    weights = weight_context.mT, weight_hidden.mT, weight_query.mT, bias_hidden
    _solve("attentive_gru_forward", gates.shape[1], mask, gates, queries, hidden, keys, values, v, *weights, *results)
    return results


@recur.register_fake
def _results(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    before = gates.shape[:2]
    sizes = hidden.shape[1], values.shape[2], keys.shape[1], 4 * hidden.shape[1]
    h, c, weights, parts = (gates.new_empty(*before, size) for size in sizes)
    return h, c, weights, parts


@torch.library.custom_op("archlab::attentive_gru_cpu_backward", mutates_args=(), device_types="cpu")
def recur_backward(
    doutputs: Tensor,
    dcontexts: Tensor,
    outputs: Tensor,
    contexts: Tensor,
    weights: Tensor,
    parts: Tensor,
    queries: Tensor,
    hidden: Tensor,
    weight_context: Tensor,
    weight_hidden: Tensor,
    weight_query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> list[Tensor]:
    """Gradients: of the gates, of what the state adds to them, of c, of the queries, keys, v per row, and hidden."""
    results = _gradients(
        doutputs, dcontexts, outputs, contexts, weights, parts, queries, hidden, weight_context, weight_hidden,
        weight_query, keys, values, v, mask,
    )  # fmt: skip
    whole = torch.baddbmm(queries, states_before(hidden, outputs), weight_query.mT.expand(len(hidden), -1, -1))
    given = None, whole, hidden, keys, values, v, weight_context, weight_hidden, weight_query, None
    kept = outputs, contexts, weights, parts
    dlast = torch.zeros_like(hidden)
    _solve("attentive_gru_backward", queries.shape[1], mask, *given, *kept, doutputs, dcontexts, dlast, *results)
    return results


@recur_backward.register_fake
def _gradients(
    doutputs: Tensor,
    dcontexts: Tensor,
    outputs: Tensor,
    contexts: Tensor,
    weights: Tensor,
    parts: Tensor,
    queries: Tensor,
    hidden: Tensor,
    weight_context: Tensor,
    weight_hidden: Tensor,
    weight_query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None,
) -> list[Tensor]:
    rows, steps, size = outputs.shape
    shapes = (rows, steps, 3 * size), (rows, steps, 3 * size), contexts.shape, queries.shape, keys.shape
    return [outputs.new_empty(shape) for shape in (*shapes, (rows, len(v)), hidden.shape)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, queries, hidden, weight_context, weight_hidden, _, *rest = inputs
    ctx.set_materialize_grads(False)  # weights and gates, which are large, are not used outside
    ctx.save_for_backward(*output, queries, hidden, weight_context, weight_hidden, *rest)


def _differentiate(ctx: Any, doutputs: Tensor | None, dcontexts: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    outputs, contexts, weights, _, _, hidden, *_ = ctx.saved_tensors
    doutputs = torch.zeros_like(outputs) if doutputs is None else doutputs
    dcontexts = torch.zeros_like(contexts) if dcontexts is None else dcontexts
    results = recur_backward(doutputs, dcontexts, *ctx.saved_tensors)
    dgates, dproduct, dcontext, dqueries, dkeys, dv, dhidden = results
    before = states_before(hidden, outputs).flatten(0, 1)
    product = dproduct.flatten(0, 1)
    dweights = dgates.flatten(0, 1).mT @ contexts.flatten(0, 1), product.mT @ before, product.sum(0)
    dvalues = weights.mT @ dcontext
    return dgates, dqueries, dhidden, *dweights, dqueries.flatten(0, 1).mT @ before, dkeys, dvalues, dv.sum(0), None


recur.register_autograd(_differentiate, setup_context=_save)
recur_backward.register_autograd(native.no_second_derivatives("attentive_gru"))
