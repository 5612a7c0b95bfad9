"""The selective scan in plain torch with about 2 sqrt(L) steps in place of L, in bounded memory, on any device.

Time is cut into segments, a segment into chunks. All chunks of a segment run their time loops side by side, each from
a zero state; the chunks' own start states follow from one short loop, and what a start state adds t steps later is
exp(A sum of delta) times it. Every exponent is a sum of step sizes times A, as in the recurrence itself: nothing is
divided by a decay, so nothing can overflow that would not overflow there. A segment is computed again in the backward
pass, so that no more than one segment's states are held.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from kernels.arguments import anywhere, compute_dtype
from kernels.selective_scan.reference import skip_and_gate, step_size, with_groups, zeros_like_state

RANK = 10
FALLBACK = True
why_not = anywhere

SEGMENT = 256
CHUNK = 16


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
    x, A, B, C = u.to(dtype), A.to(dtype), with_groups(B.to(dtype)), with_groups(C.to(dtype))
    delta = step_size(delta.to(dtype), delta_bias, delta_softplus)
    h = zeros_like_state(x, A) if initial_state is None else initial_state.to(dtype)
    outputs = []
    for start in range(0, u.shape[2], SEGMENT):
        pieces = (_piece(tensor, start) for tensor in (delta, delta * x, B, C))
        y, h = checkpoint(_segment, *pieces, A, h, use_reentrant=False, preserve_rng_state=False)
        outputs.append(y)
    y = skip_and_gate(torch.cat(outputs, dim=2), x, D, z)
    return y.to(u.dtype), h


def _piece(tensor: Tensor, start: int) -> Tensor:
    """The segment of a (..., L) tensor that begins there; a constant B or C (D, N) as it is."""
    return tensor if tensor.dim() == 2 else tensor[..., start : start + SEGMENT]


def _segment(delta: Tensor, x: Tensor, B: Tensor, C: Tensor, A: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The outputs (B, D, l) without skip and gate, and the state (B, D, N) after one segment.

    delta and x = delta u: (B, D, l). h: (B, D, N), the state before it.
    """
    length, channels = delta.shape[2], delta.shape[1]
    delta, x, B, C = (_in_chunks(tensor) for tensor in (delta, x, B, C))  # (..., K chunks, T steps)
    A = A[:, None]  # (D, 1, N), beside (B, D, K, N)
    elapsed = delta.cumsum(-1)
    local = _states_from_zero(delta, x, B, A)
    starts = _start_states(torch.exp(elapsed[..., -1, None] * A), local[-1], h)
    outputs = [
        (_at_step(C, t, channels) * (state + torch.exp(elapsed[..., t, None] * A) * starts[:, :, :-1])).sum(-1)
        for t, state in enumerate(local)
    ]
    return torch.stack(outputs, dim=-1).flatten(2)[:, :, :length], starts[:, :, -1]


def _in_chunks(tensor: Tensor) -> Tensor:
    """(..., l) -> (..., K, T), the last chunk filled with steps that do nothing; a constant B or C as it is."""
    if tensor.dim() == 2:
        return tensor
    size = min(CHUNK, tensor.shape[-1])
    return F.pad(tensor, (0, -tensor.shape[-1] % size)).unflatten(-1, (-1, size))


def _at_step(matrix: Tensor, t: int, channels: int) -> Tensor:
    """(B, D, K, N) or (D, 1, N), what a B or C in chunks holds for each channel at step t of each chunk."""
    if matrix.dim() == 2:
        return matrix[:, None]
    return matrix[..., t].transpose(2, 3).repeat_interleave(channels // matrix.shape[1], dim=1)


def _states_from_zero(delta: Tensor, x: Tensor, B: Tensor, A: Tensor) -> list[Tensor]:
    """The state (B, D, K, N) of every chunk after each of its T steps, had it begun with zeros."""
    states = [x[..., 0, None] * _at_step(B, 0, x.shape[1])]
    for t in range(1, x.shape[3]):
        states.append(torch.exp(delta[..., t, None] * A) * states[-1] + x[..., t, None] * _at_step(B, t, x.shape[1]))
    return states


def _start_states(decays: Tensor, ends: Tensor, h: Tensor) -> Tensor:
    """(B, D, K + 1, N), the true state before each chunk and after the last.

    decays: (B, D, K, N) over a whole chunk. ends: (B, D, K, N), the end states from zero.
    """
    starts = [h]
    for chunk in range(ends.shape[2]):
        starts.append(decays[:, :, chunk] * starts[-1] + ends[:, :, chunk])
    return torch.stack(starts, dim=2)
