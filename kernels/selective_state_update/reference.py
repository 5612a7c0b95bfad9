"""One step of the selective scan in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = False
why_not = anywhere


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
    if in_place:
        with torch.no_grad():
            out, new = _updated(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)
            return out, state.copy_(new)
    return _updated(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus)


def _updated(
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
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(state, x, dt, A, B, C, D, z, dt_bias)
    u, dt = x.to(dtype), dt.to(dtype)
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = F.softplus(dt)
    new = torch.exp(dt[:, :, None] * A) * state + (dt * u)[:, :, None] * _per_channel(B, x)
    y = (new * _per_channel(C, x)).sum(-1)
    if D is not None:
        y = y + D * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(x.dtype), new.to(state.dtype)


def _per_channel(matrix: Tensor, x: Tensor) -> Tensor:
    """(B, G, N) -> (B, D, N)."""
    return matrix.repeat_interleave(x.shape[1] // matrix.shape[1], dim=1)
