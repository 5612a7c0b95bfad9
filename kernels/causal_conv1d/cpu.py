"""The causal convolution in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects. Nothing is saved for the backward pass but the arguments: y before the activation
is cheaper to compute again than to read.
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


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.causal_conv1d`. Returns out (B, D, L) and the last W - 1 columns (B, D, W - 1)."""
    history = weight.shape[1] - 1
    bias = None if bias is None else bias.float()
    initial = None if initial_states is None else initial_states.float()
    given = x.float(), weight.float(), bias, initial
    out = Convolution.apply(*given, silu) if native.differentiable(given) else convolve(*given, silu)
    before = x.new_zeros(*x.shape[:2], history) if initial_states is None else initial_states.to(x.dtype)
    columns = torch.cat([before, x[:, :, max(0, x.shape[2] - history) :]], dim=2)
    return out.to(x.dtype), columns[:, :, columns.shape[2] - history :].clone()


_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial, bool silu"


def _gradients(dout: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    x, weight, bias, initial, _ = inputs
    dbias = x.new_empty(0 if bias is None else bias.shape)
    dinitial = x.new_empty(0) if initial is None else torch.empty_like(initial)
    return torch.empty_like(x), x.new_empty(weight.shape), dbias, dinitial


convolve = native.operator(f"causal_conv1d_cpu({_ARGUMENTS}) -> Tensor", lambda x, *rest: torch.empty_like(x))
"""The forward pass, all float32: out (B, D, L)."""

convolve_backward = native.operator(
    f"causal_conv1d_cpu_backward(Tensor dout, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor)", _gradients
)
"""The gradients of x, weight, bias and initial; empty for those that are absent."""


class Convolution(torch.autograd.Function):
    """x, weight, bias, initial, silu -> out."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        """The forward pass."""
        ctx.save_for_backward(*inputs[:-1])
        ctx.silu = inputs[-1]
        return convolve(*inputs)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs; they have none themselves."""
        tensors = ctx.saved_tensors
        gradients = native.once("causal_conv1d", convolve_backward, dout, *tensors, ctx.silu)
        return *native.given(tensors, gradients), None
