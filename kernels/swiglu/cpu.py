"""The gate in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation. Each reads and writes every number once; the
gradient comes as one tensor, as the product before it wants it.
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


def swiglu(x: Tensor) -> Tensor:
    """See `kernels.swiglu`. Returns (..., E)."""
    return native.run(gate, _gate, _save, _differentiate, (x.float().contiguous(),)).to(x.dtype)


def _solve(function: str, x: Tensor, *others: Tensor) -> None:
    """Call a function of the library: on x and out, or x, dout and dx, all contiguous."""
    rows, features = x.shape[:-1].numel(), x.shape[-1] // 2
    addresses = [tensor.data_ptr() for tensor in (x, *others)]
    native.call(library(), function, [rows, features, native.threads(16 * x.numel()), *addresses])


@torch.library.custom_op("archlab::swiglu_cpu", mutates_args=(), device_types="cpu")
def gate(x: Tensor) -> Tensor:
    """The forward pass: contiguous float32 (..., 2 E) to (..., E)."""
    return _gate(x)


@gate.register_fake
def _gated(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], x.shape[-1] // 2)


def _gate(x: Tensor) -> Tensor:
    """The operator `gate`, at work."""
    out = _gated(x)
    _solve("swiglu_forward", x, out)
    return out


@torch.library.custom_op("archlab::swiglu_cpu_backward", mutates_args=(), device_types="cpu")
def gate_backward(dout: Tensor, x: Tensor) -> Tensor:
    """The gradient of x."""
    return _gate_backward(dout, x)


def _gate_backward(dout: Tensor, x: Tensor) -> Tensor:
    """The operator `gate_backward`, at work."""
    dx = torch.empty_like(x)
    _solve("swiglu_backward", x, dout.contiguous(), dx)
    return dx


@gate_backward.register_fake
def _gradient(dout: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x)


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor]:
    return (native.run_backward(gate_backward, _gate_backward, (dout, *ctx.saved_tensors)),)


gate.register_autograd(_differentiate, setup_context=_save)
gate_backward.register_autograd(native.no_second_derivatives("swiglu"))
