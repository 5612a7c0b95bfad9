"""The selective scan on the CPU, in C++ (cpu.cpp), which computes in float32 and converts shorter floats as it reads.

Two operators without side effects. The forward pass keeps every 64th state for the backward pass.
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
WINDOW = 64
"""Steps between two states that the forward pass keeps for the backward pass."""


def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return native.library(Path(__file__).with_name("cpu.cpp"), f"SCAN_WINDOW={WINDOW}")


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_scan`. Returns out (B, D, L), h_L (B, D, N)."""
    tensors = native.readable(u, delta, A, B, C, D, z, delta_bias, initial_state)
    if native.differentiable(tensors):
        return Scan.apply(*tensors, delta_softplus)
    out, last_state, _ = scan(*tensors, delta_softplus, False)
    return out, last_state


_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, "
    "Tensor? D, Tensor? z, Tensor? bias, Tensor? initial, bool softplus"
)


def _results(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels, length = u.shape
    windows = (length - 1) // WINDOW if rest[-1] else 0
    last = u.new_empty(rows, channels, A.shape[1], dtype=torch.float32)
    return torch.empty_like(u), last, last.new_empty(rows * windows, channels, A.shape[1])


def _gradients(dout: Tensor | None, dlast: Tensor | None, kept: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(kept.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in inputs[:-1])


scan = native.operator(f"selective_scan_cpu({_ARGUMENTS}, bool keep) -> (Tensor, Tensor, Tensor)", _results)
"""The forward pass.

Returns out (B, D, L) in the dtype of u, in float32 h_L (B, D, N) and the state before every window but a row's first
(B (windows - 1), D, N), which the backward pass needs; the last is empty unless `keep`.
"""

scan_backward = native.operator(
    f"selective_scan_cpu_backward(Tensor? dout, Tensor? dlast, Tensor kept, {_ARGUMENTS}) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _gradients,
)
"""The gradients of u, delta, A, B, C, D, z, bias and initial; empty for what is absent."""


class Scan(torch.autograd.Function):
    """u, delta, A, B, C, D, z, bias, initial, softplus -> out, h_L."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The forward pass."""
        out, last, kept = scan(*inputs, True)
        ctx.save_for_backward(kept, *inputs[:-1])
        ctx.softplus = inputs[-1]
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs; they have none themselves."""
        kept, *tensors = ctx.saved_tensors
        gradients = native.once("selective_scan", scan_backward, dout, dlast, kept, *tensors, ctx.softplus)
        return *native.given(tensors, gradients), None
