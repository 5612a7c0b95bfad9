"""The selective scan in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

Two operators without side effects, each with a fake implementation, so that torch.compile, FakeTensor and
memory prediction work through them. The forward pass keeps every 64th state for the backward pass.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from kernels import native
from kernels.selective_scan._cpu_interface import NAMES, WINDOW, library, parts_of, solve

RANK = 20
FALLBACK = False

_SHARED = ("A", "B", "C", "D", "bias")  # by all rows; B and C where constant


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
    """See `kernels.selective_scan`; B and C are (D, N) or (B, G, N, L). Returns out (B, D, L), h_L (B, D, N)."""
    B, C = _same_groups(B, C)
    given = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    tensors = [t if t is None or t.dtype == torch.float32 else t.float() for t in given]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if not native.plain(*tensors):
        out, last_state, _ = scan(*tensors, delta_softplus, keep)
    elif keep:
        out, last_state = Scan.apply(*tensors, delta_softplus)
    else:
        out, last_state, _ = _scanned(*tensors, delta_softplus, keep)
    return out if out.dtype == u.dtype else out.to(u.dtype), last_state


class Scan(torch.autograd.Function):
    """The operator's forward and backward pass in eager mode."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The tensors in the order of NAMES, then whether there is a softplus; returns out and the last state."""
        *tensors, ctx.softplus = inputs
        out, last, kept = _scanned(*tensors, ctx.softplus, True)
        ctx.save_for_backward(kept, *tensors)
        ctx.set_materialize_grads(False)
        return out, last

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs. Second derivatives raise: the operator says so."""
        kept, *tensors = ctx.saved_tensors
        dout = torch.zeros_like(tensors[0]) if dout is None else dout
        dlast = dout.new_zeros(kept.shape[0], *tensors[2].shape) if dlast is None else dlast
        differentiate = scan_backward if torch.is_grad_enabled() else _scan_gradients
        gradients = differentiate(dout, dlast, kept, *tensors, ctx.softplus)
        return *native.given(tensors, gradients), None


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C with equally many groups; a constant as it is."""
    if B.dim() == 2 or C.dim() == 2 or B.shape[1] == C.shape[1]:
        return B, C
    groups = math.lcm(B.shape[1], C.shape[1])
    return B.repeat_interleave(groups // B.shape[1], 1), C.repeat_interleave(groups // C.shape[1], 1)


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
    """The forward pass, all float32.

    Returns out (B, D, L), h_L (B, D, N) and the state before every window but the first (B, windows - 1, D, N), which
    the backward pass needs; the last is empty unless `keep`.
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
    rows, channels, length = u.shape
    states = A.shape[1]
    windows = (length - 1) // WINDOW if keep else 0
    return torch.empty_like(u), u.new_empty(rows, channels, states), u.new_empty(rows, windows, channels, states)


@torch.library.custom_op("archlab::selective_scan_cpu_backward", mutates_args=(), device_types="cpu")
def scan_backward(
    dout: Tensor,
    dlast: Tensor,
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
    return _scan_gradients(dout, dlast, kept, u, delta, A, B, C, D, z, bias, initial, softplus)


@scan_backward.register_fake
def _scan_backward_results(
    dout: Tensor,
    dlast: Tensor,
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
    return _added_up(_rooms((u, delta, A, B, C, D, z, bias, initial)), u)


def _scanned(*inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `scan`, at work."""
    *tensors, softplus, keep = inputs
    results = out, last, kept = _scan_results(*inputs)
    named = dict(zip(NAMES, tensors, strict=True))
    kept = kept.flatten(0, 1) if keep else None
    solve("selective_scan_forward", softplus, {**named, "out": out, "last": last, "kept": kept})
    return results


def _scan_gradients(dout: Tensor, dlast: Tensor, kept: Tensor, *inputs: Any) -> list[Tensor]:
    """The operator `scan_backward`, at work."""
    *tensors, softplus = inputs
    rooms = _rooms(tuple(tensors))
    named = dict(zip(NAMES, tensors, strict=True))
    named |= {f"d{name}": room for name, room in zip(NAMES, rooms, strict=True)}
    solve("selective_scan_backward", softplus, {**named, "dout": dout, "dlast": dlast, "kept": kept.flatten(0, 1)})
    return _added_up(rooms, tensors[0])


def _rooms(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    """Where the gradient of each argument is gathered: per row if rows share the argument, for B and C per part too."""
    u = tensors[0]
    assert u is not None
    return [None if t is None else _room(name, t, u) for name, t in zip(NAMES, tensors, strict=True)]


def _room(name: str, tensor: Tensor, u: Tensor) -> Tensor:
    if tensor.dim() == 4:  # variable B, C
        rows, groups, states, length = tensor.shape
        return u.new_empty(parts_of(u.shape[1], groups) * rows, groups, length, states).mT
    if name in _SHARED:
        return u.new_empty(*u.shape[:2], tensor.shape[1:].numel())
    return torch.empty_like(tensor)


def _added_up(rooms: list[Tensor | None], u: Tensor) -> list[Tensor]:
    """The gradients in the shapes of the arguments; empty for those that are absent."""
    named = zip(NAMES, rooms, strict=True)
    return [u.new_empty(0) if room is None else _add_up(name, room, u.shape[0]) for name, room in named]


def _add_up(name: str, room: Tensor, rows: int) -> Tensor:
    if room.dim() == 4:
        return room.mT.unflatten(0, (-1, rows)).sum(0).mT
    if name in ("D", "bias"):
        return room.sum(0).squeeze(1)
    return room.sum(0) if name in _SHARED else room


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(output[2], *tensors)


def _differentiate(ctx: Any, dout: Tensor, dlast: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    gradients = scan_backward(dout, dlast, kept, *tensors, ctx.softplus)
    return *native.given(tensors, gradients), None, None


scan.register_autograd(_differentiate, setup_context=_save)
scan_backward.register_autograd(native.no_second_derivatives("selective_scan"))
