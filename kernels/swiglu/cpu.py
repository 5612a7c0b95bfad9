"""The gate in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects. Each reads and writes every number once; the gradient comes as one tensor, as the
product before it wants it.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False


def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return native.library(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def swiglu(x: Tensor) -> Tensor:
    """See `kernels.swiglu`. Returns (..., E)."""
    given = x.float().contiguous()
    return (Gate.apply(given) if native.differentiable((given,)) else gate(given)).to(x.dtype)


gate = native.operator("swiglu_cpu(Tensor x) -> Tensor", lambda x: x.new_empty(*x.shape[:-1], x.shape[-1] // 2))
"""The forward pass: contiguous float32 (..., 2 E) to (..., E)."""

gate_backward = native.operator(
    "swiglu_cpu_backward(Tensor dout, Tensor x) -> Tensor", lambda dout, x: torch.empty_like(x)
)
"""The gradient of x."""


class Gate(torch.autograd.Function):
    """x -> out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The forward pass."""
        ctx.save_for_backward(x)
        return gate(x)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Tensor:
        """The gradient of x; it has none itself."""
        return native.once("swiglu", gate_backward, dout.contiguous(), *ctx.saved_tensors)
