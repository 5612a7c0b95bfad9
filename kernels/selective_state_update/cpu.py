"""One step of the selective scan in float32 on the CPU, in C++ (cpu.cpp), on states of any short float where they lie.

Two operators, each with a fake implementation: one without side effects, with a backward pass in plain torch, and one
that writes the state, with none.
"""

from __future__ import annotations

import ctypes
import functools
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_NO_COLUMNS = (0, 0, 0, 0)


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_state_update`; B and C are (B, G, N). Returns out (B, D), new state (B, D, N)."""
    if B.shape[1] != C.shape[1]:
        groups = math.lcm(B.shape[1], C.shape[1])
        B, C = (matrix.repeat_interleave(groups // matrix.shape[1], 1) for matrix in (B, C))
    given = (x, dt, A, B, C, D, z, dt_bias)
    floats = [t if t is None or t.dtype == torch.float32 else t.float() for t in given]
    if in_place:
        out, new = _update_in_place(state, floats, dt_softplus), state
    else:
        out, new = _update(state, floats, dt_softplus)
    return out if out.dtype == x.dtype else out.to(x.dtype), new


def _update(state: Tensor, tensors: list[Tensor | None], softplus: bool) -> tuple[Tensor, Tensor]:
    differentiable = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (state, *tensors))
    if not differentiable and native.plain(state, *tensors):
        return _updated(state, *tensors, softplus)
    return update(state, *tensors, softplus)


def _update_in_place(state: Tensor, tensors: list[Tensor | None], softplus: bool) -> Tensor:
    if not native.plain(state, *tensors):
        with torch.no_grad():
            return update_(state, *tensors, softplus)
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)  # so that autograd notices, should it have kept the old one
    return _written(state, *tensors, softplus)


def _solve(softplus: bool, state: Tensor, new: Tensor, out: Tensor, *tensors: Tensor | None) -> None:
    """Call the library; the structure is `Problem` of cpu.cpp."""
    x, dt, A, B, C, D, z, bias = tensors
    assert B is not None
    threads = native.threads(2 * state.numel())
    problem = [*state.shape, B.shape[1], threads, softplus, _TYPES[state.dtype]]
    for tensor in (A, D, bias, B, C):
        problem += native.numbers(tensor, 3)
    for tensor in (x, dt, z, out):
        problem += _NO_COLUMNS if tensor is None else (tensor.data_ptr(), *tensor.stride(), 0)
    for tensor in (state, new):
        problem += (tensor.data_ptr(), *tensor.stride())
    native.call(library(), "selective_state_update", problem)


@torch.library.custom_op("archlab::selective_state_update_cpu", mutates_args=(), device_types="cpu")
def update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """All float32 but the state: out (B, D), and the new state (B, D, N) in the dtype of the old."""
    return _updated(state, x, dt, A, B, C, D, z, bias, softplus)


@update.register_fake
def _results(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(state)


def _updated(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The operator `update`, at work."""
    state, *tensors, softplus = inputs
    out, new = _results(*inputs)
    _solve(softplus, state, new, out, *tensors)
    return out, new


@torch.library.custom_op("archlab::selective_state_update_cpu_", mutates_args=("state",), device_types="cpu")
def update_(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    """As `update`, but the new state is written over the old one. Returns out (B, D)."""
    return _written(state, x, dt, A, B, C, D, z, bias, softplus)


@update_.register_fake
def _result(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _written(*inputs: Any) -> Tensor:
    """The operator `update_`, at work."""
    state, *tensors, softplus = inputs
    out = torch.empty_like(tensors[0])
    _solve(softplus, state, state, out, *tensors)
    return out


@torch.library.custom_op("archlab::selective_state_update_cpu_backward", mutates_args=(), device_types="cpu")
def update_backward(
    dout: Tensor,
    dnew: Tensor,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """The gradients of state, x, dt, A, B, C, D, z and bias; empty for what is absent."""
    raw = dt if bias is None else dt + bias
    dt, slope = (F.softplus(raw), torch.sigmoid(raw)) if softplus else (raw, torch.ones_like(raw))
    per_channel = x.shape[1] // B.shape[1]
    B, C = (matrix.repeat_interleave(per_channel, 1) for matrix in (B, C))
    decay, added = torch.exp(dt[..., None] * A), dt * x
    kept = decay * state
    new = kept + added[..., None] * B
    dy, dz = dout, dout.new_empty(0)
    if z is not None:
        y = (new * C).sum(-1) if D is None else (new * C).sum(-1) + D * x
        s = torch.sigmoid(z)
        dy, dz = dout * z * s, dout * y * s * (1 + z * (1 - s))
    at_new = dnew + dy[..., None] * C
    at_decay, at_added = at_new * kept, (at_new * B).sum(-1)
    dx = at_added * dt if D is None else at_added * dt + D * dy
    ddt = ((at_decay * A).sum(-1) + at_added * x) * slope
    dA = (at_decay * dt[..., None]).sum(0)
    dB, dC = (each.unflatten(1, (-1, per_channel)).sum(2) for each in (at_new * added[..., None], dy[..., None] * new))
    dD = dout.new_empty(0) if D is None else (dy * x).sum(0)
    dbias = dout.new_empty(0) if bias is None else ddt.sum(0)
    return [(decay * at_new).to(state.dtype), dx, ddt, dA, dB, dC, dD, dz, dbias]


@update_backward.register_fake
def _gradients(
    dout: Tensor,
    dnew: Tensor,
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    tensors = (state, x, dt, A, B, C, D, z, bias)
    return [dout.new_empty(0) if t is None else t.new_empty(t.shape) for t in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor, dnew: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = update_backward(dout, dnew, *tensors, ctx.softplus)
    return *native.given(tensors, gradients), None


update.register_autograd(_differentiate, setup_context=_save)
update_backward.register_autograd(native.no_second_derivatives("selective_state_update"))
