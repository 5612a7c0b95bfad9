"""The C interface of cpu.cpp: its structure field by field, and the calls."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from kernels import build, native

WINDOW = 64
"""Steps between two states that the forward pass keeps for the backward pass."""

Arguments = Sequence[Tensor | None]
"""u, delta, A, B, C, D, z, bias, initial: the tensors of a scan, or their gradients."""


def forward(softplus: bool, arguments: Arguments, kept: Tensor | None, out: Tensor, last: Tensor) -> None:
    """Fill `out` and `last`, and `kept` if there is one.

    Raises BuildError if there is no library, MemoryError if memory ran out.
    """
    problem = _given(softplus, arguments)
    problem += native.typed(kept, 3) + native.typed(out, 3) + native.typed(last, 3)
    native.call(library(), "selective_scan_forward", problem)


def backward(
    softplus: bool,
    arguments: Arguments,
    kept: Tensor,
    dout: Tensor | None,
    dlast: Tensor | None,
    gradients: Arguments,
) -> None:
    """Fill the gradients, one for each argument that there is. Raises as `forward`."""
    problem = _given(softplus, arguments)
    problem += native.typed(kept, 3) + native.typed(None, 3) + native.typed(None, 3)
    problem += native.typed(dout, 3) + native.typed(dlast, 3) + _fields(*gradients)
    native.call(library(), "selective_scan_backward", problem)


def _given(softplus: bool, arguments: Arguments) -> tuple[int, ...]:
    u, _, A, B, C, *_ = arguments
    assert u is not None
    assert A is not None
    assert B is not None
    assert C is not None
    rows, channels, length = u.shape
    states = A.shape[1]
    groups_B, groups_C = (m.shape[1] if m.dim() == 4 else m.dim() - 2 for m in (B, C))  # 0: constant in time
    threads = native.threads(rows * channels * length * states)
    sizes = (rows, channels, length, states, groups_B, groups_C, threads, softplus)
    return sizes + _fields(*arguments)


def _fields(
    u: Tensor | None,
    delta: Tensor | None,
    A: Tensor | None,
    B: Tensor | None,
    C: Tensor | None,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
) -> tuple[int, ...]:
    typed = native.typed
    inputs = typed(u, 3) + typed(delta, 3) + typed(A, 3) + _matrix(B) + _matrix(C)
    return inputs + typed(D, 3) + typed(z, 3) + typed(bias, 3) + typed(initial, 3)


def _matrix(matrix: Tensor | None) -> tuple[int, ...]:
    if matrix is None or matrix.dim() != 3:
        return native.typed(matrix, 4)
    address, code, row, state, step = native.typed(matrix, 3)
    return address, code, row, 0, state, step


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"), f"SCAN_WINDOW={WINDOW}")
