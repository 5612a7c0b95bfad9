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
    problem = [*_sizes(softplus, arguments), *_fields(arguments), *_of_three(kept, out, last)]
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
    problem = [*_sizes(softplus, arguments), *_fields(arguments), *_of_three(kept, None, None)]
    problem += [*_of_three(dout, dlast), *_fields(gradients)]
    native.call(library(), "selective_scan_backward", problem)


def _sizes(softplus: bool, arguments: Arguments) -> tuple[int, ...]:
    u, _, A, B, C, *_ = arguments
    assert u is not None
    assert A is not None
    states = A.shape[1]
    return *u.shape, states, _groups(B), _groups(C), native.threads(u.numel() * states), softplus


def _groups(matrix: Tensor | None) -> int:
    """How many groups of channels a B or C has; 0 if it is constant in time."""
    assert matrix is not None
    return matrix.shape[1] if matrix.dim() == 4 else matrix.dim() - 2


def _fields(arguments: Arguments) -> list[int]:
    u, delta, A, B, C, *others = arguments
    return [*_of_three(u, delta, A), *_matrix(B), *_matrix(C), *_of_three(*others)]


def _of_three(*tensors: Tensor | None) -> list[int]:
    return [number for tensor in tensors for number in native.typed(tensor, 3)]


def _matrix(matrix: Tensor | None) -> tuple[int, ...]:
    if matrix is None or matrix.dim() != 3:
        return native.typed(matrix, 4)
    address, code, row, state, step = native.typed(matrix, 3)
    return address, code, row, 0, state, step


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"), f"SCAN_WINDOW={WINDOW}")
