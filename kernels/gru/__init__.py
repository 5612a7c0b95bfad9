"""A gated recurrent unit over a sequence: one layer, in one direction."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["gru"]

_OP = "gru"


def gru(
    inputs: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    hidden: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run the recurrence of torch's nn.GRU, with its parameters.

        i_r, i_z, i_n = W_ih x_t + b_ih
        p_r, p_z, p_n = W_hh h_{t-1} + b_hh        h_0 = hidden
        r, z = sigmoid(i_r + p_r), sigmoid(i_z + p_z)
        h_t = (1 - z) tanh(i_n + r p_n) + z h_{t-1}

    inputs: (B, T, I). weight_ih: (3 H, I). weight_hh: (3 H, H). bias_ih and bias_hh: (3 H,). hidden: (B, H), zeros by
    default. Returns h (B, T, H) and the last state (B, H), in the dtype of the inputs. Computed in at least float32,
    differentiable in all arguments.

    Raises ValueError for shapes that do not fit.
    Source: Cho et al. 2014, Learning phrase representations using RNN encoder-decoder, with the reset gate applied
    after the product, as in cuDNN.
    """
    if inputs.dim() != 3 or inputs.shape[1] == 0 or weight_hh.dim() != 2:
        raise ValueError(
            f"{_OP}: expected inputs (B, T, I) with T >= 1 and weight_hh (3 H, H), "
            f"got {tuple(inputs.shape)} and {tuple(weight_hh.shape)}"
        )
    rows, _, features = inputs.shape
    size = weight_hh.shape[1]
    expect(_OP, "weight_ih", weight_ih, "3 H, I", 3 * size, features)
    expect(_OP, "weight_hh", weight_hh, "3 H, H", 3 * size, size)
    expect(_OP, "bias_ih", bias_ih, "3 H", 3 * size)
    expect(_OP, "bias_hh", bias_hh, "3 H", 3 * size)
    expect(_OP, "hidden", hidden, "B, H", rows, size)
    hidden = inputs.new_zeros(rows, size) if hidden is None else hidden
    return run(_OP, backend, inputs, weight_ih, weight_hh, bias_ih, bias_hh, hidden)
