"""The selective scan of Mamba (S6)."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["selective_scan"]

_OP = "selective_scan"


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
    *,
    initial_state: Tensor | None = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    delta_softplus: bool = ...,
    *,
    return_last_state: Literal[True],
    initial_state: Tensor | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run a linear recurrence per channel whose step size, input and output maps may depend on the time step.

        d_t = delta_t + delta_bias,  then softplus(d_t) if delta_softplus
        h_t = exp(d_t A) h_{t-1} + d_t B_t u_t                     h_0 = initial_state, or 0
        y_t = sum_n C_t h_t + D u_t
        out = y silu(z), or y without z

    u, delta, z: (B, D, L), any strides. A: (D, N), real. D, delta_bias: (D,). initial_state: (B, D, N).
    B, C: (D, N) constant in time, or (B, N, L), or (B, G, N, L), where channel d reads group d // (D / G).
    Returns out (B, D, L) in the dtype of u, and with return_last_state also h_L (B, D, N), in the dtype of the
    computation: that of the arguments together, at least float32. Both are differentiable in every argument. A step
    with delta = -inf under softplus, or 0 without, leaves the state exactly as it was; NaN passes through.

    Raises ValueError for shapes that do not fit and for a backend that cannot run these tensors.
    Source: Gu & Dao 2023, Mamba, section 3.2 and algorithm 2; the arguments are those of mamba_ssm's
    `selective_scan_fn`, to which `initial_state` and the gradient through the last state are added.
    """
    if not _usual(u, delta, A, B, C, D, z, delta_bias, initial_state):
        _check(u, delta, A, B, C, D, z, delta_bias, initial_state)
    out, last_state = run(_OP, backend, u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state)
    return (out, last_state) if return_last_state else out


def _usual(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> bool:
    """Whether the shapes fit, B and C being (B, N, L): seen in half the time that `_check` takes, which knows more."""
    sequence, matrix = u.shape, A.shape
    if len(sequence) != 3 or len(matrix) != 2 or A.is_complex():
        return False
    rows, channels, length = sequence
    states = matrix[1]
    return (
        length != 0
        and matrix[0] == channels
        and delta.shape == sequence
        and B.shape == C.shape == (rows, states, length)
        and (D is None or D.shape == (channels,))
        and (z is None or z.shape == sequence)
        and (delta_bias is None or delta_bias.shape == (channels,))
        and (initial_state is None or initial_state.shape == (rows, channels, states))
    )


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.dim() != 3 or u.shape[2] == 0:
        raise ValueError(f"{_OP}: expected u of shape (B, D, L) with L >= 1, got {tuple(u.shape)}")
    if A.dim() != 2 or A.is_complex():
        raise ValueError(f"{_OP}: expected a real A of shape (D, N), got {A.dtype} of shape {tuple(A.shape)}")
    rows, channels, length = u.shape
    states = A.shape[1]
    expect(_OP, "delta", delta, "B, D, L", rows, channels, length)
    expect(_OP, "z", z, "B, D, L", rows, channels, length)
    expect(_OP, "A", A, "D, N", channels, states)
    expect(_OP, "D", D, "D", channels)
    expect(_OP, "delta_bias", delta_bias, "D", channels)
    expect(_OP, "initial_state", initial_state, "B, D, N", rows, channels, states)
    _check_matrix("B", B, rows, channels, states, length)
    _check_matrix("C", C, rows, channels, states, length)


def _check_matrix(name: str, matrix: Tensor, rows: int, channels: int, states: int, length: int) -> None:
    if matrix.dim() == 3:
        expect(_OP, name, matrix, "B, N, L", rows, states, length)
    elif matrix.dim() != 4:
        expect(_OP, name, matrix, "D, N", channels, states)
    else:
        groups = matrix.shape[1]
        expect(_OP, name, matrix, "B, G, N, L", rows, groups, states, length)
        if groups == 0 or channels % groups:
            message = f"expected {name} with a number of groups that divides D = {channels}, got {groups}"
            raise ValueError(f"{_OP}: {message}")
