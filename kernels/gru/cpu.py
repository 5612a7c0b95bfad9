"""The GRU in float32 on the CPU, its recurrence in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. The recurrence alone is in them: what the inputs
add, and the gradients of the weights, are products over all steps, taken at once.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import build, native
from kernels.gru.torch import gru as step
from kernels.linear import linear

RANK = 20
FALLBACK = False

_LANES = 16  # features come in multiples of this many; zeros added to them change nothing


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def gru(
    inputs: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor, hidden: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.gru`. Returns h (B, T, H), the last state (B, H)."""
    size = hidden.shape[1]
    if inputs.shape[1] == 1:  # no recurrence: torch has the product without turning the weights
        given = (inputs, weight_ih, weight_hh, bias_ih, bias_hh, hidden)
        states, last = step(*(tensor.float() for tensor in given))
        return states.to(inputs.dtype), last.to(inputs.dtype)
    gates = linear(inputs.float(), weight_ih.float(), bias_ih.float())
    weight = padded(padded(weight_hh).mT, thirds=True).mT
    states, _ = recur(padded(gates, thirds=True), padded(hidden), weight, padded(bias_hh, thirds=True))
    states = states[..., :size].to(inputs.dtype)
    return states, states[:, -1].clone()  # a view would keep all states alive


def padded(tensor: Tensor, thirds: bool = False) -> Tensor:
    """Float32, contiguous, the last axis (or each third of it) filled with zeros to a multiple of the lanes."""
    missing = -(tensor.shape[-1] // (3 if thirds else 1)) % _LANES
    if missing:
        parts = tensor.chunk(3, -1) if thirds else (tensor,)
        tensor = torch.cat([F.pad(part, (0, missing)) for part in parts], -1)
    return tensor.float().contiguous()


def states_before(hidden: Tensor, states: Tensor) -> Tensor:
    """The state before each step (B, T, H), of the first (B, H) and those after each step."""
    return torch.cat([hidden[:, None], states[:, :-1]], 1)


def _solve(function: str, *tensors: Tensor | None) -> None:
    """Call a function of the library; the tensors in the order of its structure."""
    tensors = tuple(None if tensor is None else tensor.contiguous() for tensor in tensors)
    states = tensors[4]
    assert states is not None
    rows, steps, size = states.shape
    threads = native.threads(3 * states.numel() * size)
    problem = [rows, steps, size, threads, *(0 if tensor is None else tensor.data_ptr() for tensor in tensors)]
    native.call(library(), function, problem)


@torch.library.custom_op("archlab::gru_cpu", mutates_args=(), device_types="cpu")
def recur(gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The forward pass, all float32: h (B, T, H); the gates and what reset multiplies (B, T, 4 H)."""
    results = _results(gates, hidden, weight, bias)
    _solve("gru_forward", gates, hidden, weight.mT, bias, *results)
    return results


@recur.register_fake
def _results(gates: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    rows, steps, size = *gates.shape[:2], hidden.shape[1]
    return gates.new_empty(rows, steps, size), gates.new_empty(rows, steps, 4 * size)


@torch.library.custom_op("archlab::gru_cpu_backward", mutates_args=(), device_types="cpu")
def recur_backward(
    dstates: Tensor, states: Tensor, parts: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the gates, of what the state adds to them, and of hidden."""
    results = _gradients(dstates, states, parts, hidden, weight)
    _solve("gru_backward", None, hidden, weight, None, states, parts, dstates, *results)
    return results


@recur_backward.register_fake
def _gradients(
    dstates: Tensor, states: Tensor, parts: Tensor, hidden: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    rows, steps, size = states.shape
    dgates, dproduct = (states.new_empty(rows, steps, 3 * size) for _ in range(2))
    return dgates, dproduct, torch.empty_like(hidden)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, hidden, weight, _ = inputs
    ctx.set_materialize_grads(False)  # nothing but the states is used outside
    ctx.save_for_backward(*output, hidden, weight)


def _differentiate(ctx: Any, dstates: Tensor, _: None) -> tuple[Tensor, ...]:
    states, _, hidden, _ = ctx.saved_tensors
    dgates, dproduct, dhidden = recur_backward(dstates, *ctx.saved_tensors)
    product = dproduct.flatten(0, 1)
    return dgates, dhidden, product.mT @ states_before(hidden, states).flatten(0, 1), product.sum(0)


recur.register_autograd(_differentiate, setup_context=_save)
recur_backward.register_autograd(native.no_second_derivatives("gru"))
