"""What the C interfaces of all compiled operations share: strided tensors, and calls."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from kernels import build

_WORK_PER_THREAD = 2**18  # multiply-adds, about, that pay for starting a thread


class View(ctypes.Structure):
    """A float32 tensor (rows, channels, steps) with its strides in elements, as in tiles.h; no data = absent."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "channel", "step"))]


def view(tensor: Tensor) -> View:
    """(B, D, L) as it is; (D, N) and (D,) the same for every row."""
    strides = tensor.stride()
    if len(strides) < 3:
        strides = (0, *strides) if len(strides) == 2 else (0, *strides, 0)
    return View(tensor.data_ptr(), *strides)


def threads(work: int) -> int:
    """How many threads so much work deserves, at most torch's."""
    return min(torch.get_num_threads(), 1 + work // _WORK_PER_THREAD)


def call(library: ctypes.CDLL | build.BuildError, function: str, problem: ctypes.Structure) -> None:
    """Call a function of a library. Raises BuildError if there is no library, MemoryError if memory ran out."""
    if isinstance(library, build.BuildError):
        raise library
    if getattr(library, function)(ctypes.byref(problem)) != 0:
        raise MemoryError(f"{function}: out of memory")


def why_not(
    library: Callable[[], ctypes.CDLL | build.BuildError], dtype: torch.dtype | None, device: torch.device | None
) -> str | None:
    """Why a float32 library for the CPU cannot run such tensors here, with the remedy; None = it can.

    The library is built only if the tensors suit it.
    """
    if device is not None and device.type not in ("cpu", "meta"):
        return f"it serves CPU tensors, not {device.type}: move them, or take another backend"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, not {dtype}: take backend='reference'"
    built = library()
    return str(built) if isinstance(built, build.BuildError) else None


def given(tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the arguments that were given, None for the others."""
    pairs = zip(tensors, gradients, strict=True)
    return [None if tensor is None else gradient for tensor, gradient in pairs]


def no_second_derivatives(op: str) -> Callable[..., NoReturn]:
    """The backward pass of a backward pass that has none."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(f"{op}: the backend 'cpu' has no second derivatives: take backend='reference'")

    return refuse
