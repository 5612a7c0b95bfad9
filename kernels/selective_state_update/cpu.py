"""One step of the selective scan in float32 on the CPU, in C++ (cpu.cpp), on states of any short float where they lie.

Two operators: one without side effects, with a backward pass in plain torch, and one that writes the state, with none.
"""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
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
    floats = [t if t is None or t.dtype == torch.float32 else t.float() for t in (x, dt, A, B, C, D, z, dt_bias)]
    if in_place:
        with torch.no_grad():
            out, new = update_(state, *floats, dt_softplus), state
        native.written(state)
    elif native.differentiable((state, *floats)):
        out, new = Update.apply(state, *floats, dt_softplus)
    else:
        out, new = update(state, *floats, dt_softplus)
    return out if out.dtype == x.dtype else out.to(x.dtype), new


def _results(state: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(state)


_ARGUMENTS = "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? bias, bool softplus"

update = native.operator(f"selective_state_update_cpu(Tensor state, {_ARGUMENTS}) -> (Tensor, Tensor)", _results)
"""All float32 but the state: out (B, D), and the new state (B, D, N) in the dtype of the old."""

update_ = native.operator(
    f"selective_state_update_cpu_(Tensor(a!) state, {_ARGUMENTS}) -> Tensor",
    lambda state, x, *rest: torch.empty_like(x),
)
"""As `update`, but the new state is written over the old one. Returns out (B, D)."""


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


class Update(torch.autograd.Function):
    """state, x, dt, A, B, C, D, z, bias, softplus -> out, new state."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The step."""
        ctx.save_for_backward(*inputs[:-1])
        ctx.softplus = inputs[-1]
        return update(*inputs)

    @staticmethod
    def backward(ctx: Any, dout: Tensor, dnew: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs; they have none themselves."""
        tensors = ctx.saved_tensors
        gradients = native.once("selective_state_update", update_backward, dout, dnew, *tensors, ctx.softplus)
        return *native.given(tensors, gradients), None
