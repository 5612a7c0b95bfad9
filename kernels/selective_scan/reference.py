"""The selective scan as the paper writes it: a loop over time, in any floating dtype, differentiable twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.arguments import anywhere, compute_dtype

RANK = 0
FALLBACK = True
why_not = anywhere


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
    dtype = compute_dtype(u, delta, A, B, C, D, z, delta_bias, initial_state)
    x, A, B, C = u.to(dtype), A.to(dtype), with_groups(B), with_groups(C)
    delta = step_size(delta.to(dtype), delta_bias, delta_softplus)
    h = zeros_like_state(x, A) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for t in range(u.shape[2]):
        decay = torch.exp(delta[:, :, t, None] * A)  # (B, D, N)
        h = decay * h + delta[:, :, t, None] * at_step(B, t, u.shape[1]) * x[:, :, t, None]
        outputs.append((at_step(C, t, u.shape[1]) * h).sum(-1))
    y = skip_and_gate(torch.stack(outputs, dim=2), x, D, z)
    return y.to(u.dtype), h


def with_groups(matrix: Tensor) -> Tensor:
    """A B or C (B, N, L) -> (B, 1, N, L); the other forms as they are."""
    return matrix.unsqueeze(1) if matrix.dim() == 3 else matrix


def step_size(delta: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """(B, D, L), the step size d_t of the recurrence."""
    if bias is not None:
        delta = delta + bias[:, None]
    return F.softplus(delta) if softplus else delta


def zeros_like_state(x: Tensor, A: Tensor) -> Tensor:
    """The state (B, D, N) before the first step when none is given."""
    return A.new_zeros(x.shape[0], *A.shape)


def at_step(matrix: Tensor, t: int, channels: int) -> Tensor:
    """(B, D, N) or (D, N), what a B or C of any form holds for each channel at step t."""
    return matrix if matrix.dim() == 2 else matrix[..., t].repeat_interleave(channels // matrix.shape[1], dim=1)


def skip_and_gate(y: Tensor, x: Tensor, D: Tensor | None, z: Tensor | None) -> Tensor:
    """(B, D, L), the scan's output with the skip connection D x and the gate silu(z)."""
    if D is not None:
        y = y + D[:, None] * x
    return y if z is None else y * F.silu(z.to(y.dtype))
