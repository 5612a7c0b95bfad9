"""One step of the causal convolution, for decoding token by token."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["causal_conv1d_update_"]

_OP = "causal_conv1d_update"


def causal_conv1d_update_(
    x: Tensor,
    states: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Advance `kernels.causal_conv1d` by one column, and write the columns that the next step needs over `states`.

    x: (B, D). states: (B, D, W - 1), the columns before x; after the call those after the first, and x. Of any strides,
    but with memory of its own for each element. weight: (D, W). bias: (D,). activation: None, 'silu' or 'swish'.
    Returns out (B, D) in the dtype of x. Computed in at least float32, without autograd.

    Raises ValueError for shapes that do not fit and for an unknown activation.
    Source: Gu & Dao 2023, Mamba, section 3.4; the arguments are those of causal_conv1d's `causal_conv1d_update`.
    """
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{_OP}_: expected activation None, 'silu' or 'swish', got {activation!r}")
    if x.dim() != 2 or weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(
            f"{_OP}_: expected x of shape (B, D) and weight of shape (D, W) with W >= 1, "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    rows, channels = x.shape
    width = weight.shape[1]
    expect(f"{_OP}_", "weight", weight, "D, W", channels, width)
    expect(f"{_OP}_", "bias", bias, "D", channels)
    expect(f"{_OP}_", "states", states, "B, D, W - 1", rows, channels, width - 1)
    if 0 in states.stride():
        raise ValueError(f"{_OP}_: expected states with memory of their own for each element, got expanded ones")
    return run(_OP, backend, x, states, weight, bias, activation is not None)
