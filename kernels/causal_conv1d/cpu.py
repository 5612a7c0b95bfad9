"""The causal convolution in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. Nothing is saved for the backward pass but the
arguments: y before the activation is cheaper to compute again than to read.
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

_MOST_TASKS, _LEAST_STEPS = 64, 256  # of pieces of time that are computed side by side
_VIEWS = ("x", "weight", "bias", "initial", "out", "dout", "dx", "dweight", "dbias", "dinitial")


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.causal_conv1d`. Returns out (B, D, L) and the last W - 1 columns (B, D, W - 1)."""
    history = weight.shape[1] - 1
    bias = None if bias is None else bias.float()
    initial = None if initial_states is None else initial_states.float()
    given = x.float(), weight.float(), bias, initial
    out = native.run(convolve, _convolve, _save, _differentiate, given, silu)
    before = x.new_zeros(*x.shape[:2], history) if initial_states is None else initial_states.to(x.dtype)
    columns = torch.cat([before, x[:, :, max(0, x.shape[2] - history) :]], dim=2)
    return out.to(x.dtype), columns[:, :, columns.shape[2] - history :].clone()


def _segments(x: Tensor) -> int:
    """Into how many pieces of time a row is cut: a matter of its shape alone, as sums over time are."""
    return max(1, min(_MOST_TASKS // len(x), x.shape[2] // _LEAST_STEPS))


def _solve(function: str, silu: bool, **tensors: Tensor | None) -> None:
    x, weight = tensors["x"], tensors["weight"]
    assert x is not None
    assert weight is not None
    width = weight.shape[1]
    problem = [*x.shape, width, _segments(x), native.threads(x.numel() * (width + 8)), silu]
    for name in _VIEWS:
        problem += native.numbers(tensors.get(name), 3)
    native.call(library(), function, problem)


@torch.library.custom_op("archlab::causal_conv1d_cpu", mutates_args=(), device_types="cpu")
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    """The forward pass, all float32: out (B, D, L)."""
    return _convolve(x, weight, bias, initial, silu)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    """The operator `convolve`, at work."""
    out = torch.empty_like(x)
    _solve("causal_conv1d_forward", silu, x=x, weight=weight, bias=bias, initial=initial, out=out)
    return out


@convolve.register_fake
def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("archlab::causal_conv1d_cpu_backward", mutates_args=(), device_types="cpu")
def convolve_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool
) -> list[Tensor]:
    """The gradients of x, weight, bias and initial; empty for those that are absent."""
    return _convolve_backward(dout, x, weight, bias, initial, silu)


def _convolve_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool
) -> list[Tensor]:
    """The operator `convolve_backward`, at work."""
    dx, dweight, dbias, dinitial = _rooms(x, weight, bias, initial)
    given = {"x": x, "weight": weight, "bias": bias, "initial": initial, "dout": dout}
    _solve("causal_conv1d_backward", silu, **given, dx=dx, dweight=dweight, dbias=dbias, dinitial=dinitial)
    return _added_up(dx, dweight, dbias, dinitial)


@convolve_backward.register_fake
def _gradients(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool
) -> list[Tensor]:
    return _added_up(*_rooms(x, weight, bias, initial))


def _rooms(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Where the gradients are gathered; what the rows share, per segment of each row."""
    parts = len(x) * _segments(x)
    dbias = None if bias is None else x.new_empty(parts, x.shape[1], 1)
    dinitial = None if initial is None else torch.empty_like(initial)
    return torch.empty_like(x), x.new_empty(parts, *weight.shape), dbias, dinitial


def _added_up(dx: Tensor, dweight: Tensor, dbias: Tensor | None, dinitial: Tensor | None) -> list[Tensor]:
    """The gradients in the shapes of the arguments; empty for those that are absent."""
    absent = dx.new_empty(0)
    dbias = absent if dbias is None else dbias.sum(0).squeeze(1)
    return [dx, dweight.sum(0), dbias, dx.new_empty(0) if dinitial is None else dinitial]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = native.run_backward(convolve_backward, _convolve_backward, (dout, *tensors), ctx.silu)
    return *native.given(tensors, gradients), None


convolve.register_autograd(_differentiate, setup_context=_save)
convolve_backward.register_autograd(native.no_second_derivatives("causal_conv1d"))
