"""The norm in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. Nothing is saved for the backward pass but the
arguments: each vector is read anyway, and tells its own norm.
"""

from __future__ import annotations

import ctypes
import functools
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False

_ROWS = 64  # of a task, whose part of the weight's gradient is a row of its own


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"), f"ROWS={_ROWS}")


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.rms_norm`. Returns (..., D)."""
    given = x.float().contiguous(), weight.float().contiguous()
    return native.run(normalize, _normalize, _save, _differentiate, given, eps).to(x.dtype)


def _solve(function: str, eps: float, x: Tensor, *others: Tensor) -> None:
    """Call a function of the library: on x, weight and out, or x, weight, dout, dx and dweight; all contiguous."""
    rows, features = x.shape[:-1].numel(), x.shape[-1]
    (eps_bits,) = struct.unpack("q", struct.pack("d", eps))
    addresses = [tensor.data_ptr() for tensor in (x, *others)]
    native.call(library(), function, [rows, features, native.threads(8 * x.numel()), eps_bits, *addresses])


@torch.library.custom_op("archlab::rms_norm_cpu", mutates_args=(), device_types="cpu")
def normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The forward pass, contiguous float32."""
    return _normalize(x, weight, eps)


@normalize.register_fake
def _normalized(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return torch.empty_like(x)


def _normalize(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The operator `normalize`, at work."""
    out = torch.empty_like(x)
    _solve("rms_norm_forward", eps, x, weight, out)
    return out


@torch.library.custom_op("archlab::rms_norm_cpu_backward", mutates_args=(), device_types="cpu")
def normalize_backward(dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The gradients of x and weight."""
    return _normalize_backward(dout, x, weight, eps)


def _normalize_backward(dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The operator `normalize_backward`, at work."""
    dx = torch.empty_like(x)
    dweight = x.new_empty(-(-x.shape[:-1].numel() // _ROWS), len(weight))
    _solve("rms_norm_backward", eps, x, weight, dout.contiguous(), dx, dweight)
    return dx, dweight.sum(0)


@normalize_backward.register_fake
def _gradients(dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(weight)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.eps = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    given = dout, *ctx.saved_tensors
    return *native.run_backward(normalize_backward, _normalize_backward, given, ctx.eps), None


normalize.register_autograd(_differentiate, setup_context=_save)
normalize_backward.register_autograd(native.no_second_derivatives("rms_norm"))
