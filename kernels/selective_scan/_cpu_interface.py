"""The C interface of cpu.cpp: its structure field by field, and the calls."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

from torch import Tensor

from kernels import build, native

WINDOW = 64
"""Steps between two states that the forward pass keeps for the backward pass."""
PART = 128
"""Channels that share one sum of the gradients of B and C."""


NAMES = ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial")
"""The arguments of the scan, in the order of the operators."""

_FORWARD = ("u", "delta", "z", "A", "D", "bias", "initial", "kept")
_BACKWARD = ("dout", "dlast", "du", "ddelta", "dz", "dA", "dD", "dbias", "dinitial")


def solve(function: str, softplus: bool, tensors: dict[str, Tensor | None]) -> None:
    """Call a function of the library; the structure is `Problem` of cpu_problem.h, absent tensors are left out.

    Raises BuildError if there is no library, MemoryError if memory ran out.
    """
    u, A, B, C = (tensor for name in ("u", "A", "B", "C") if (tensor := tensors[name]) is not None)
    groups = next((matrix.shape[1] for matrix in (B, C) if matrix.dim() == 4), 1)
    rows, channels, length = u.shape
    states = A.shape[1]
    problem = [
        *(rows, channels, length, states, groups, parts_of(channels, groups)),
        *(native.threads(u.numel() * states), softplus, B.dim() == 2, C.dim() == 2),
    ]
    for name in _FORWARD:
        problem += native.numbers(tensors.get(name), 3)
    problem += native.numbers(B, 4)
    problem += native.numbers(C, 4)
    problem += native.numbers(tensors.get("out"), 3)
    problem += native.numbers(tensors.get("last"), 3)
    if "dout" in tensors:  # the forward pass reads no further
        for name in _BACKWARD:
            problem += native.numbers(tensors.get(name), 3)
        problem += native.numbers(tensors["dB"], 4)
        problem += native.numbers(tensors["dC"], 4)
    native.call(library(), function, problem)


def parts_of(channels: int, groups: int) -> int:
    """The number of parts in a group."""
    return -(-channels // groups // PART)


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"), f"SCAN_WINDOW={WINDOW}", f"SCAN_PART={PART}")
