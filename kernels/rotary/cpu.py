"""The rotation in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

An operator without side effects. Its gradient is itself, turning back.
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


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary`. Returns (B, H, T, E)."""
    return _turned(x.float(), cos.float().contiguous(), sin.float().contiguous(), False).to(x.dtype)


def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    x = x if x.stride(3) == 1 else x.contiguous()
    return Turn.apply(x, cos, sin, back) if native.differentiable((x,)) else turn(x, cos, sin, back)


def _result(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    rows, heads, length, features = x.shape
    return x.new_empty(rows, length, heads, features).transpose(1, 2)


turn = native.operator("rotary_cpu(Tensor x, Tensor cos, Tensor sin, bool back) -> Tensor", _result)
"""All float32, cos and sin contiguous, and the features of x; `back` turns the other way."""


class Turn(torch.autograd.Function):
    """x, cos, sin, back -> out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
        """The rotation."""
        ctx.save_for_backward(cos, sin)
        ctx.back = back
        return turn(x, cos, sin, back)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of x: the rotation back."""
        cos, sin = ctx.saved_tensors
        return _turned(dout, cos, sin, not ctx.back), None, None, None
