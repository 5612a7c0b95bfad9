"""The C interface of cpu.cpp: its structures field by field, and the calls."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from torch import Tensor

from kernels import build, native
from kernels.native import View, view

WINDOW = 64
"""Steps between two states that the forward pass keeps for the backward pass."""
PART = 128
"""Channels that share one sum of the gradients of B and C."""


class Matrix(ctypes.Structure):
    """A float32 tensor (rows, groups, states, steps) with its strides in elements."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "group", "state", "step"))]


NAMES = ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial")
"""The arguments of the scan, in the order of the operators."""

_SIZES = (
    *("rows", "channels", "length", "states", "groups", "parts"),
    *("threads", "softplus", "constant_B", "constant_C"),
)
_VIEWS = (
    *("u", "delta", "z", "A", "D", "bias", "initial", "kept", "out", "last"),
    *("dout", "dlast", "du", "ddelta", "dz", "dA", "dD", "dbias", "dinitial"),
)
_MATRICES = ("B", "C", "dB", "dC")


class Problem(ctypes.Structure):
    """What one call is given and where its results go; the tensors behind it must outlive the call."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, View) for name in _VIEWS),
        *((name, Matrix) for name in _MATRICES),
    ]

    def __init__(self, tensors: tuple[Tensor | None, ...], softplus: bool) -> None:
        u, _, A, B, C = (tensor for tensor in tensors[:5] if tensor is not None)
        groups = next((matrix.shape[1] for matrix in (B, C) if matrix.dim() == 4), 1)
        states = A.shape[1]
        threads = native.threads(u.numel() * states)
        sizes = *u.shape, states, groups, parts_of(u.shape[1], groups)
        super().__init__(*sizes, threads, softplus, B.dim() == 2, C.dim() == 2)
        self.set(**dict(zip(NAMES, tensors, strict=True)))

    def set(self, **tensors: Tensor | None) -> None:
        """Point fields at tensors; those never set are absent."""
        for name, tensor in tensors.items():
            if tensor is not None:
                setattr(self, name, matrix(tensor) if name in _MATRICES else view(tensor))

    def solve(self, function: str) -> None:
        """Call a function of the library. Raises BuildError if there is no library, MemoryError if memory ran out."""
        native.call(library(), function, self)


def parts_of(channels: int, groups: int) -> int:
    """The number of parts in a group."""
    return -(-channels // groups // PART)


def matrix(tensor: Tensor) -> Matrix:
    """(B, G, N, L) as it is; (B, D, N) and (D, N) as one group per channel, the same for every step (and row)."""
    strides = {4: tensor.stride(), 3: (*tensor.stride(), 0), 2: (0, *tensor.stride(), 0)}[tensor.dim()]
    return Matrix(tensor.data_ptr(), *strides)


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"), f"SCAN_WINDOW={WINDOW}", f"SCAN_PART={PART}")
