"""The norm in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects. Nothing is saved for the backward pass but the arguments: each vector is read
anyway, and tells its own norm.
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

_ROWS = 64  # of a task, whose part of the weight's gradient is a row of its own


def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return native.library(Path(__file__).with_name("cpu.cpp"), f"ROWS={_ROWS}")


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `kernels.rms_norm`. Returns (..., D)."""
    given = x.float().contiguous(), weight.float().contiguous()
    out = Norm.apply(*given, eps) if native.differentiable(given) else normalize(*given, eps)
    return out.to(x.dtype)


def _gradients(dout: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(-(-x.shape[:-1].numel() // _ROWS), len(weight))


normalize = native.operator(
    "rms_norm_cpu(Tensor x, Tensor weight, float eps) -> Tensor", lambda x, weight, eps: torch.empty_like(x)
)
"""The forward pass, contiguous float32."""

normalize_backward = native.operator(
    "rms_norm_cpu_backward(Tensor dout, Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)", _gradients
)
"""The gradient of x, and that of weight in parts (..., D) to be added up."""


class Norm(torch.autograd.Function):
    """x, weight, eps -> out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """The forward pass."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return normalize(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x and weight; they have none themselves."""
        x, weight = ctx.saved_tensors
        dx, parts = native.once("rms_norm", normalize_backward, dout.contiguous(), x, weight, ctx.eps)
        return dx, parts.sum(0), None
