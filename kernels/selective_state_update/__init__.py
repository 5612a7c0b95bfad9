"""One step of the selective scan, for decoding token by token."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["selective_state_update", "selective_state_update_"]

_OP = "selective_state_update"


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Advance the state of `kernels.selective_scan` by one step.

        d   = dt + dt_bias,  then softplus(d) if dt_softplus
        new = exp(d A) state + d B x
        out = (sum_n C new + D x) silu(z)

    state: (B, D, N). x, dt, z: (B, D). A: (D, N), real. B, C: (B, N) or (B, G, N). D, dt_bias: (D,).
    Returns out (B, D) in the dtype of x and the new state in the dtype of the old, which is not changed. Computed in
    at least float32, differentiable in every argument. Raises ValueError for shapes that do not fit.
    Source: Gu & Dao 2023, Mamba, section 3.2; the arguments are those of mamba_ssm's `selective_state_update`.
    """
    B, C = _with_groups(B), _with_groups(C)
    _check(state, x, dt, A, B, C, D, z, dt_bias)
    return run(_OP, backend, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, False)


def selective_state_update_(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """As `selective_state_update`, but write the new state into `state` and return only out (B, D); no autograd.

    Raises ValueError too for a state of which elements share memory.
    """
    B, C = _with_groups(B), _with_groups(C)
    _check(state, x, dt, A, B, C, D, z, dt_bias)
    if 0 in state.stride():
        raise ValueError(f"{_OP}_: expected a state with memory of its own for each element, got an expanded one")
    return run(_OP, backend, state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, True)[0]


def _with_groups(matrix: Tensor) -> Tensor:
    """(B, N) -> (B, 1, N)."""
    return matrix.unsqueeze(1) if matrix.dim() == 2 else matrix


def _check(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
) -> None:
    if state.dim() != 3:
        raise ValueError(f"{_OP}: expected state of shape (B, D, N), got {tuple(state.shape)}")
    rows, channels, states = state.shape
    expect(_OP, "x", x, "B, D", rows, channels)
    expect(_OP, "dt", dt, "B, D", rows, channels)
    expect(_OP, "z", z, "B, D", rows, channels)
    expect(_OP, "A", A, "D, N", channels, states)
    expect(_OP, "D", D, "D", channels)
    expect(_OP, "dt_bias", dt_bias, "D", channels)
    for name, matrix in (("B", B), ("C", C)):
        groups = matrix.shape[1] if matrix.dim() == 3 else 1
        expect(_OP, name, matrix, "B, G, N", rows, groups, states)
        if groups == 0 or channels % groups:
            raise ValueError(
                f"{_OP}: expected {name} with a number of groups that divides D = {channels}, got {groups}"
            )
