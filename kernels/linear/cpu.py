"""The product in float32 on the CPU, in C++ (cpu.cpp).

Two operators without side effects: the product, which is also the gradient of its left side, and the gradient of the
weights. Made for what models in training multiply, many vectors with a matrix of a few hundred rows and columns, where
it is at the processor's limit; general libraries are at it for square matrices.
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


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.linear`. Returns (..., N)."""
    given = (x.flatten(0, -2) if x.dim() > 1 else x[None], weight, None if bias is None else _neighbours(bias))
    out = Product.apply(*given) if native.differentiable(given) else product(_neighbours(given[0]), *given[1:])
    return out if x.dim() == 2 else out.view(*x.shape[:-1], len(weight))


product = native.operator(
    "linear_cpu(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    lambda x, weight, bias: x.new_empty(len(x), len(weight)),
)
"""(R, K), (N, K), (N,) to (R, N). The numbers of a row of x, and those of the bias, are neighbours in memory."""

weight_gradient = native.operator(
    "linear_cpu_weight(Tensor dout, Tensor x) -> Tensor",
    lambda dout, x: x.new_empty(dout.shape[1], x.shape[1]),
)
"""(R, N), (R, K) to the gradient of the weights (N, K). The numbers of a row of dout are neighbours in memory."""


def _neighbours(tensor: Tensor) -> Tensor:
    """The same numbers, those along the last axis being neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


class Product(torch.autograd.Function):
    """x (R, K), weight (N, K), bias (N,) -> out (R, N)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The forward pass."""
        ctx.save_for_backward(x, weight)
        return product(_neighbours(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients; where they are to be differentiated themselves, by torch's own products."""
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():
            products = dout @ weight, dout.mT @ x
        else:
            needed, rows = ctx.needs_input_grad, _neighbours(dout)
            products = (
                product(rows, weight.mT, None) if needed[0] else None,
                weight_gradient(rows, x) if needed[1] else None,
            )
        return *products, dout.sum(0) if ctx.needs_input_grad[2] else None
