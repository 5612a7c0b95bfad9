"""The selective scan on the CPU, in C++ (cpu.cpp), which computes in float32 and converts shorter floats as it reads.

Two operators without side effects, each with a fake implementation, so that torch.compile, FakeTensor and
memory prediction work through them. The forward pass keeps every 64th state for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.selective_scan._cpu_interface import WINDOW, backward, forward, library

RANK = 20
FALLBACK = False


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
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    tensors = [t if t is None or t.dtype in native.CODES else t.float() for t in given]
    keep = torch.is_grad_enabled() and native.any_requires_grad(*tensors)
    if not native.plain(*tensors):
        out, last_state, _ = scan(*tensors, delta_softplus, keep)
    elif keep:
        out, last_state = Scan.apply(*tensors, delta_softplus)
    else:
        out, last_state, _ = _scanned(*tensors, delta_softplus, keep)
    return out, last_state


class Scan(torch.autograd.Function):
    """The operator's forward and backward pass in eager mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The tensors in the order of the operator, then whether there is a softplus; returns out and h_L."""
        *tensors, ctx.softplus = inputs
        out, last, kept = _scanned(*tensors, ctx.softplus, True)
        ctx.save_for_backward(kept, *tensors)
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs. Second derivatives raise: the operator says so."""
        kept, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            gradients = scan_backward(dout, dlast, kept, *tensors, ctx.softplus)
            return *native.given(tensors, gradients), None
        return *_differentiated(dout, dlast, kept, *tensors, ctx.softplus), None


@torch.library.custom_op("archlab::selective_scan_cpu", mutates_args=(), device_types="cpu")
def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass.

    Returns out (B, D, L) in the dtype of u, in float32 h_L (B, D, N) and the state before every window but a row's
    first (B (windows - 1), D, N), which the backward pass needs; the last is empty unless `keep`.
    """
    return _scanned(u, delta, A, B, C, D, z, bias, initial, softplus, keep)


@scan.register_fake
def _scan_results(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return _results(u, A, keep)


@torch.library.custom_op("archlab::selective_scan_cpu_backward", mutates_args=(), device_types="cpu")
def scan_backward(
    dout: Tensor | None,
    dlast: Tensor | None,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """The gradients of u, delta, A, B, C, D, z, bias and initial; empty for what is absent."""
    gradients = _differentiated(dout, dlast, kept, u, delta, A, B, C, D, z, bias, initial, softplus)
    return [kept.new_empty(0) if gradient is None else gradient for gradient in gradients]


@scan_backward.register_fake
def _scan_backward_results(
    dout: Tensor | None,
    dlast: Tensor | None,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    tensors = (u, delta, A, B, C, D, z, bias, initial)
    return [kept.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in tensors]


def _results(u: Tensor, A: Tensor, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    rows, channels, length = u.shape
    windows = (length - 1) // WINDOW if keep else 0
    last = torch.empty((rows, channels, A.shape[1]), dtype=torch.float32, device=u.device)
    return torch.empty_like(u), last, last.new_empty((rows * windows, channels, A.shape[1]))


def _scanned(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `scan`, at work."""
    *tensors, softplus, keep = inputs
    results = out, last, kept = _results(tensors[0], tensors[2], keep)
    forward(softplus, tensors, kept if keep else None, out, last)
    return results


def _differentiated(dout: Tensor | None, dlast: Tensor | None, kept: Tensor, *inputs: Any) -> list[Tensor | None]:
    """The operator `scan_backward`, at work; None for what is absent."""
    *tensors, softplus = inputs
    gradients = [None if tensor is None else torch.empty_like(tensor) for tensor in tensors]
    backward(softplus, tensors, kept, dout, dlast, gradients)
    return gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(output[2], *tensors)


def _differentiate(ctx: Any, dout: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    gradients = scan_backward(dout, dlast, kept, *tensors, ctx.softplus)
    return *native.given(tensors, gradients), None, None


scan.register_autograd(_differentiate, setup_context=_save)
scan_backward.register_autograd(native.no_second_derivatives("selective_scan"))
