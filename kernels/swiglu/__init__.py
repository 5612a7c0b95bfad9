"""The gate of a SwiGLU feed-forward."""

from __future__ import annotations

from torch import Tensor

from kernels.dispatch import run

__all__ = ["swiglu"]

_OP = "swiglu"


def swiglu(x: Tensor, *, backend: str = "auto") -> Tensor:
    """Gate one half of the features by the other.

        out = gate sigmoid(gate) up,  with (gate, up) the halves of x

    x: (..., 2 E). Returns (..., E) in the dtype of x, computed in at least float32, differentiable.

    Raises ValueError for an odd number of features.
    Source: Shazeer 2020, GLU variants improve transformer, equation 6.
    """
    if x.dim() == 0 or x.shape[-1] % 2:
        raise ValueError(f"{_OP}: expected x of shape (..., 2 E), got {tuple(x.shape)}")
    return run(_OP, backend, x)
