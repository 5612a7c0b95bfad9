"""The product in float32 on the CPU, in C++ (cpu.cpp).

Two operators without side effects: the product, which is also the gradient of its left side, and the gradients of
weights and bias. Made for what models in training multiply, many vectors with a matrix of a few hundred rows and
columns, where it is at the processor's limit; general libraries are at it for square matrices.
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
    if dtype in (torch.bfloat16, torch.float16):
        return f"it computes in float32, and torch has products of {dtype}: take backend='reference'"
    return native.why_not(library, dtype, device)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """See `kernels.linear`. Returns (..., N)."""
    given = (x.flatten(0, -2) if x.dim() > 1 else x[None], weight, None if bias is None else _neighbours(bias))
    if native.differentiable(given):
        out = Product.apply(*given, relu)
    else:
        out = product(_neighbours(given[0]), None, *given[1:], relu)
    return out if x.dim() == 2 else out.view(*x.shape[:-1], len(weight))


product = native.operator(
    "linear_cpu(Tensor x, Tensor? mask, Tensor weight, Tensor? bias, bool relu) -> Tensor",
    lambda x, mask, weight, bias, relu: x.new_empty(len(x), len(weight)),
)
"""(R, K), (N, K), (N,) to (R, N). mask: like x, whose numbers are taken for 0 where those of the mask are not positive.

The numbers of a row of x and of the mask, and those of the bias, are neighbours in memory.
"""

weight_gradient = native.operator(
    "linear_cpu_weight(Tensor dout, Tensor? mask, Tensor x, bool bias) -> (Tensor, Tensor)",
    lambda dout, mask, x, bias: (
        x.new_empty(dout.shape[1], x.shape[1]),
        x.new_empty(dout.shape[1] if bias else 0),
    ),
)
"""(R, N), (R, K) to the gradients of the weights (N, K) and, if asked for, of the bias (N,).

mask: of dout, as above. The numbers of a row of both are neighbours in memory.
"""


def _neighbours(tensor: Tensor) -> Tensor:
    """The same numbers, those along the last axis being neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class Product(torch.autograd.Function):
    """x (R, K), weight (N, K), bias (N,), relu -> out (R, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
        """The forward pass."""
        out = product(_neighbours(x), None, weight, bias, relu)
        ctx.save_for_backward(x, weight, out if relu else None)
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; where they are to be differentiated themselves, by torch's own operations."""
        x, weight, out = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            dout = dout if out is None else dout.masked_fill(out <= 0, 0)
            return dout @ weight, dout.mT @ x, dout.sum(0) if of_bias else None, None
        dout = _neighbours(dout)
        dx = product(dout, out, weight.mT, None, False) if of_x else None
        dweight, dbias = weight_gradient(dout, out, x, of_bias) if of_weight or of_bias else (None, None)
        return dx, dweight, dbias if of_bias else None, None
