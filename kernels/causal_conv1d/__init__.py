"""The short causal convolution, one filter per channel, that precedes Mamba's scan."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["causal_conv1d"]

_OP = "causal_conv1d"


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    return_final_states: Literal[False] = ...,
    activation: str | None = ...,
    *,
    backend: str = ...,
) -> Tensor: ...


@overload
def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    initial_states: Tensor | None = ...,
    *,
    return_final_states: Literal[True],
    activation: str | None = ...,
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    *,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with a filter of its own that sees the present and the W - 1 columns before it.

        out_t = sum_k weight_k x_{t - (W - 1) + k} + bias,  then silu if activation

    x: (B, D, L), any strides. weight: (D, W). bias: (D,). initial_states: (B, D, W - 1), the columns before the
    first one; zeros if None. activation: None, 'silu' or 'swish' (the same).
    Returns out (B, D, L) in the dtype of x, and with return_final_states also the last W - 1 columns read
    (B, D, W - 1), a copy in the dtype of x: the initial states of what follows. Computed in at least float32,
    differentiable in every argument.

    Raises ValueError for shapes that do not fit and for an unknown activation.
    Source: Gu & Dao 2023, Mamba, section 3.4; the arguments are those of causal_conv1d's `causal_conv1d_fn`.
    """
    _check(x, weight, bias, initial_states, activation)
    out, final_states = run(_OP, backend, x, weight, bias, initial_states, activation is not None)
    return (out, final_states) if return_final_states else out


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, activation: str | None
) -> None:
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"{_OP}: expected activation None, 'silu' or 'swish', got {activation!r}")
    if x.dim() != 3 or weight.dim() != 2 or weight.shape[1] == 0:
        raise ValueError(
            f"{_OP}: expected x of shape (B, D, L) and weight of shape (D, W) with W >= 1, "
            f"got {tuple(x.shape)} and {tuple(weight.shape)}"
        )
    rows, channels, _ = x.shape
    width = weight.shape[1]
    expect(_OP, "weight", weight, "D, W", channels, width)
    expect(_OP, "bias", bias, "D", channels)
    expect(_OP, "initial_states", initial_states, "B, D, W - 1", rows, channels, width - 1)
