"""A GRU whose every step reads what Bahdanau's attention finds for its state: the decoder, taught by its targets."""

from __future__ import annotations

from torch import Tensor

from kernels.arguments import expect
from kernels.dispatch import run

__all__ = ["attentive_gru"]

_OP = "attentive_gru"


def attentive_gru(
    gates: Tensor,
    queries: Tensor,
    hidden: Tensor,
    weight_context: Tensor,
    weight_hidden: Tensor,
    bias_hidden: Tensor,
    weight_query: Tensor,
    keys: Tensor,
    values: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    backend: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Run a recurrence that feeds the context it attends to into its next state.

        c_t = sum_s softmax_s(v . tanh(W_q h_{t-1} + queries_t + keys_s)) values_s        h_0 = hidden
        i_r, i_z, i_n = gates_t + W_c c_t
        p_r, p_z, p_n = W_h h_{t-1} + b_h
        r, z = sigmoid(i_r + p_r), sigmoid(i_z + p_z)
        h_t = (1 - z) tanh(i_n + r p_n) + z h_{t-1}

    What does not depend on the state is given, computed for all steps at once. gates: (B, T, 3 H), what the inputs
    and their bias add. queries: (B, T, A). hidden: (B, H). weight_context: (3 H, E). weight_hidden: (3 H, H).
    bias_hidden: (3 H,). weight_query: (A, H). keys: (B, S, A). values: (B, S, E). v: (A,). mask: (B, S) bool, True =
    real. Returns h (B, T, H), c (B, T, E) and the last state (B, H), in the dtype of hidden. Computed in at least
    float32, differentiable in all but the mask; no (B, T, S, A) tensor is ever held.

    Raises ValueError for shapes that do not fit.
    Source: Bahdanau, Cho & Bengio 2015, A.1.2 and A.2.2; the order of the gates and their bias are those of nn.GRU.
    """
    if gates.dim() != 3 or gates.shape[1] == 0 or keys.dim() != 3 or values.dim() != 3 or hidden.dim() != 2:
        raise ValueError(
            f"{_OP}: expected gates (B, T, 3 H) with T >= 1, hidden (B, H), keys (B, S, A) and values (B, S, E), got "
            f"{tuple(gates.shape)}, {tuple(hidden.shape)}, {tuple(keys.shape)} and {tuple(values.shape)}"
        )
    rows, size = hidden.shape
    steps, length, units, width = gates.shape[1], keys.shape[1], keys.shape[2], values.shape[2]
    expect(_OP, "gates", gates, "B, T, 3 H", rows, steps, 3 * size)
    expect(_OP, "queries", queries, "B, T, A", rows, steps, units)
    expect(_OP, "weight_context", weight_context, "3 H, E", 3 * size, width)
    expect(_OP, "weight_hidden", weight_hidden, "3 H, H", 3 * size, size)
    expect(_OP, "bias_hidden", bias_hidden, "3 H", 3 * size)
    expect(_OP, "weight_query", weight_query, "A, H", units, size)
    expect(_OP, "keys", keys, "B, S, A", rows, length, units)
    expect(_OP, "values", values, "B, S, E", rows, length, width)
    expect(_OP, "v", v, "A", units)
    expect(_OP, "mask", mask, "B, S", rows, length)
    weights = weight_context, weight_hidden, bias_hidden, weight_query
    return run(_OP, backend, gates, queries, hidden, *weights, keys, values, v, mask)
