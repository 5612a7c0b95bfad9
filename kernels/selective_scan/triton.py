"""The selective scan on GPUs in Triton's language (_triton_kernels.py), compiled by Triton at first use.

The second choice there: see cuda.py. Inputs of any short dtype, states and sums in float32, no atomics. Two operators
without side effects, each with a fake implementation; the forward pass keeps every 32nd state for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import gpu, native
from kernels.selective_scan.reference import with_groups

RANK = 15
FALLBACK = False
why_not = gpu.why_not
WORKSPACE = 2**28
"""Bytes that the sums of B's and C's gradients may take while they are made; time is cut to keep to it."""

CHUNK = 32  # steps of a tile, and between kept states
_CHANNELS = 4  # of a tile, where a group has several


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
    B, C = with_groups(B), with_groups(C)
    groups = {matrix.shape[1] for matrix in (B, C) if matrix.dim() == 4}
    shared = groups.pop() if len(groups) == 1 and B.dim() == C.dim() == 4 else u.shape[1]
    B, C = (_over_time(matrix, u, shared) for matrix in (B, C))
    floats = [None if t is None else t.float() for t in (A, D, delta_bias, initial_state)]
    tensors = (u, delta, floats[0], B, C, floats[1], z, floats[2], floats[3])
    out, last_state, _ = scan(*tensors, delta_softplus, native.differentiable(tensors))
    return out, last_state


def _over_time(matrix: Tensor, u: Tensor, groups: int) -> Tensor:
    """(B, groups, N, L), of a constant without copying it. What differs between channels costs D N L in backward."""
    if matrix.dim() == 2:
        return matrix[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    return matrix if matrix.shape[1] == groups else matrix.repeat_interleave(groups // matrix.shape[1], 1)


@torch.library.custom_op("archlab::selective_scan_triton", mutates_args=())
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
    """The forward pass; A, D, bias and initial float32, B and C (B, G, N, L).

    Returns out (B, D, L), h_L (B, D, N) and the state before every chunk (B, chunks, D, N), which the backward pass
    needs; the last is empty unless `keep`.
    """
    results = _scan_results(u, delta, A, B, C, D, z, bias, initial, softplus, keep)
    out, last, kept = results
    if out.numel() == 0:
        return results
    from kernels.selective_scan import _triton_kernels

    A = A.contiguous()
    D, bias, initial = (None if t is None else t.contiguous() for t in (D, bias, initial))
    block = _block(A, u.shape[1] // B.shape[1])
    with torch.cuda.device_of(u):
        _triton_kernels.forward[_grid(u, B)](
            *(u, delta, A, B, C, *_or(u, D, z, bias, initial), out, last, kept),
            *(u.shape[1], u.shape[2], A.shape[1], u.shape[1] // B.shape[1], -(-u.shape[2] // CHUNK)),
            *(*u.stride(), *delta.stride(), *gpu.strides(z, 3), *out.stride(), *B.stride(), *C.stride()),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=bias is not None,
            HAS_INITIAL=initial is not None,
            SOFTPLUS=softplus,
            KEEP=keep,
            enable_fp_fusion=True,
            **block,
        )
    return results


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
    chunks = -(-length // CHUNK) if keep else 0
    return torch.empty_like(u), A.new_empty(rows, channels, states), A.new_empty(rows, chunks, channels, states)


def _block(A: Tensor, per_group: int) -> dict[str, int]:
    """The sizes of a tile."""
    return {"BD": _channels(per_group), "NP": gpu.power_of_two(A.shape[1]), "T": CHUNK}


def _channels(per_group: int) -> int:
    """Of a tile."""
    return 1 if per_group == 1 else _CHANNELS


def _parts(u: Tensor, B: Tensor) -> int:
    """Tiles of channels that a group has."""
    per_group = u.shape[1] // B.shape[1]
    return -(-per_group // _channels(per_group))


def _grid(u: Tensor, B: Tensor) -> tuple[int]:
    return (u.shape[0] * B.shape[1] * _parts(u, B),)


def _or(instead: Tensor, *tensors: Tensor | None) -> list[Tensor]:
    """Something to point at where there is nothing; it is not read."""
    return [instead if tensor is None else tensor for tensor in tensors]


@torch.library.custom_op("archlab::selective_scan_triton_backward", mutates_args=())
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
    results = _scan_backward_results(dout, dlast, kept, u, delta, A, B, C, D, z, bias, initial, softplus)
    if u.numel() == 0:
        return [result.zero_() for result in results]
    A = A.contiguous()
    D, bias = (None if t is None else t.contiguous() for t in (D, bias))
    like_u = [u.new_empty(u.shape, dtype=torch.float32) for _ in range(3 if z is not None else 2)]
    dB, dC = (torch.empty_like(matrix, memory_format=torch.contiguous_format) for matrix in (B, C))
    flow, sums = dlast.contiguous(), []
    for first, chunks in _stretches(u, A, B):
        flow, *parts = _stretch(
            first, chunks, (u, delta, A, B, C, D, z, bias), dout, flow, kept, like_u, (dB, dC), softplus
        )
        sums.append(parts)
    dA, dD, dbias = (torch.stack(parts).sum((0, 1)) for parts in zip(*sums, strict=True))
    made = (like_u[0], like_u[1], dA, dB, dC, dD, like_u[-1], dbias, flow)
    for result, gradient in zip(results, made, strict=True):
        if result.numel():
            result.copy_(gradient)
    return results


def _stretches(u: Tensor, A: Tensor, B: Tensor) -> list[tuple[int, int]]:
    """Pieces of time, last first, whose workspace keeps to WORKSPACE: the first chunk and how many."""
    rows, _, length = u.shape
    most = max(1, WORKSPACE // (2 * 4 * _parts(u, B) * rows * B.shape[1] * A.shape[1] * CHUNK))
    chunks = -(-length // CHUNK)
    return [(first, min(most, chunks - first)) for first in reversed(range(0, chunks, most))]


def _stretch(
    first: int,
    chunks: int,
    tensors: tuple[Any, ...],
    dout: Tensor,
    flow: Tensor,
    kept: Tensor,
    like_u: list[Tensor],
    matrices: tuple[Tensor, Tensor],
    softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The backward pass over some chunks. Returns what flows on, and dA (B, D, N), dD and dbias (B, D)."""
    from kernels.selective_scan import _triton_kernels

    u, delta, A, B, C, D, z, bias = tensors
    (rows, channels, length), states, groups = u.shape, A.shape[1], B.shape[1]
    block, steps = _block(A, channels // groups), chunks * CHUNK
    flow_on, dA = (A.new_empty(rows, channels, states) for _ in range(2))
    dD, dbias = (A.new_empty(rows, channels) for _ in range(2))
    parts = [A.new_empty(_parts(u, B), rows, groups, states, steps) for _ in range(2)]
    with torch.cuda.device_of(u):
        _triton_kernels.backward[_grid(u, B)](
            *(u, delta, A, B, C, *_or(u, D, z, bias), dout, flow, kept, like_u[0], like_u[1], like_u[-1]),
            *(dA, *parts, dD, dbias, flow_on),
            *(channels, length, states, channels // groups, groups, rows, kept.shape[1], first, chunks),
            *(*u.stride(), *delta.stride(), *gpu.strides(z, 3), *dout.stride(), *B.stride(), *C.stride()),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=bias is not None,
            SOFTPLUS=softplus,
            enable_fp_fusion=True,
            **block,
        )
    begin = first * CHUNK
    for result, part in zip(matrices, parts, strict=True):
        piece = result[..., begin : begin + steps]
        piece.copy_(part.sum(0)[..., : piece.shape[-1]])
    return flow_on, dA, dD, dbias


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
    tensors = (u, delta, A, B, C, D, z, bias, initial)
    return [A.new_empty(0) if t is None else torch.empty_like(t) for t in tensors]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)  # else there are zeros for the kept states, which have no gradient


def _differentiate(ctx: Any, dout: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    u, _, A, *_ = tensors
    dout = torch.zeros_like(u) if dout is None else dout
    dlast = A.new_zeros(*u.shape[:2], A.shape[1]) if dlast is None else dlast
    gradients = scan_backward(dout, dlast, kept, *tensors, ctx.softplus)
    return *native.given(tensors, gradients), None, None


scan.register_autograd(_differentiate, setup_context=_save)
scan_backward.register_autograd(gpu.no_second_derivatives("selective_scan"))
