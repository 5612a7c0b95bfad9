"""What the kernels in cuda.cu are told: the structures of cuda_common.cuh, and how work is cut into blocks."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

WINDOW = 32  # steps that are staged at once, and between kept states
MOST_STATES = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_SEGMENT = 4 * WINDOW  # the fewest steps that are worth a segment
_WARPS = 8  # per multiprocessor, below which the work is cut finer


class View(ctypes.Structure):
    """(rows, channels, steps) with strides in elements; no data = absent. mode: how four elements are moved."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "channel", "step", "mode"))]


class Matrix(ctypes.Structure):
    """(rows, groups, states, steps), or (channels, states) with `group` as the stride of channels."""

    _fields_ = [("data", ctypes.c_void_p), *((name, ctypes.c_int64) for name in ("row", "group", "state", "step"))]


_VIEWS = ("u", "delta", "z", "out", "dout", "du", "ddelta", "dz")
_MATRICES = ("B", "C")
_ARRAYS = (
    *("A", "D", "bias", "initial", "dlast", "last", "dinitial"),
    *("kept", "ends", "sums", "dA", "dD", "dbias", "dB", "dC"),
)
_NUMBERS = (
    *("rows", "channels", "length", "groups", "states"),
    *("begin", "end", "segment", "segments", "parts", "softplus", "reverse"),
)


class Problem(ctypes.Structure):
    """As in cuda_common.cuh."""

    _fields_ = [
        *((name, View) for name in _VIEWS),
        *((name, Matrix) for name in _MATRICES),
        *((name, ctypes.c_void_p) for name in _ARRAYS),
        *((name, ctypes.c_int64) for name in _NUMBERS),
    ]

    def set(self, **values: Tensor | int | None) -> None:
        """Fill in fields by name; numbers before tensors. Arrays are contiguous float32."""
        for name, value in values.items():
            if isinstance(value, Tensor):
                setattr(self, name, self._pointed(name, value))
            elif value is not None:
                setattr(self, name, value)

    def _pointed(self, name: str, tensor: Tensor) -> View | Matrix | int:
        if name in _VIEWS:
            return View(tensor.data_ptr(), *tensor.stride(), _mode(tensor, self.channels // self.groups))
        if name in _MATRICES:
            strides = (0, *tensor.stride(), 0) if tensor.dim() == 2 else tensor.stride()
            return Matrix(tensor.data_ptr(), *strides)
        assert tensor.dtype == torch.float32
        assert tensor.is_contiguous()
        return tensor.data_ptr()


def _mode(tensor: Tensor, per_group: int) -> int:
    """0 where four steps lie together and aligned, 1 where four channels do, else 2.

    A block's first channel is a multiple of four where it is within its group, and where the groups are such.
    """
    rows, channels, steps = tensor.stride()
    if tensor.data_ptr() % (4 * tensor.element_size()) or rows % 4:
        return 2
    if steps == 1 and channels % 4 == 0:
        return 0
    aligned = per_group % 4 == 0 or per_group == tensor.shape[1]
    return 1 if channels == 1 and steps % 4 == 0 and aligned else 2


@dataclass(frozen=True)
class Specialisation:
    """The macros of cuda.cu: one compiled module."""

    dtype: torch.dtype
    states: int
    lanes: int
    threads: int
    backward: bool
    constant_B: bool
    constant_C: bool

    @property
    def defines(self) -> dict[str, int]:
        """By the names in cuda_common.cuh."""
        return {
            "DTYPE": DTYPES.index(self.dtype),
            "STATES": self.states,
            "LANES": self.lanes,
            "THREADS": self.threads,
            "BACKWARD": int(self.backward),
            "BLOCKS": self.blocks,
            "CONST_B": int(self.constant_B),
            "CONST_C": int(self.constant_C),
        }

    @property
    def _lean(self) -> bool:
        """Whether 128 registers are enough for a thread: forwards, and backwards at about Mamba's number of states."""
        return not self.backward or (self.threads == 256 and not self.constant_B and not self.constant_C)

    @property
    def blocks(self) -> int:
        """How many of them a multiprocessor must have registers for: 128 for a thread, or 255."""
        return max(1, (512 if self._lean else 256) // self.threads)

    @property
    def options(self) -> tuple[str, ...]:
        """Of the compiler, which else spills a few registers on some GPUs although there are enough."""
        return (f"--ptxas-options=--register-usage-level={3 if self.backward else 7}",) if self._lean else ()

    @property
    def channels(self) -> int:
        """Of a block."""
        return self.threads // self.lanes

    @property
    def shared_bytes(self) -> Mapping[str, int]:
        """Shared memory of a block, by kernel; as laid out by `tiles` and `back_tiles`."""
        share = (self.states + 4 * self.lanes - 1) // (4 * self.lanes) * 4
        padded, tile = share * self.lanes, self.channels * (WINDOW + 1)
        forward = -(-2 * tile // 4) * 4 + 2 * WINDOW * (padded + 4)
        if not self.backward:
            return {"scan_forward": 4 * forward, "scan_ends": 4 * forward, "scan_join": 0}
        part = 8 if share <= 4 else 4 if share <= 8 else 2
        copies, buffers = min(4, 32 // self.lanes), 1 if padded > 32 else 2
        matrices = (2 - self.constant_B - self.constant_C) * WINDOW * copies * padded
        sums = buffers * self.threads // 32 * 2 * part * padded
        backward = matrices + WINDOW // part * share * self.threads + sums + 4 * tile
        return {"scan_backward": 4 * backward, "scan_ends_reverse": 4 * forward, "scan_join": 0}


def specialise(u: Tensor, A: Tensor, B: Tensor, C: Tensor, backward: bool, processors: int) -> Specialisation:
    """The module for these tensors: the more lanes share a channel, the fewer channels it takes to fill the machine."""
    states, channels = A.shape[1], u.shape[1]
    most, per_group = power_of_two(-(-states // 4)), channels // groups_of(B, C)
    most = min(32, most)
    if backward:
        lanes, threads = most, backward_threads(states, most)
    else:
        lanes, threads = min(most, power_of_two(-(-states // 16))), 128
        warps = u.shape[0] * channels * lanes // 32
        while lanes < most and (warps < _WARPS * processors or threads // lanes > 2 * per_group):
            lanes, warps = 2 * lanes, 2 * warps
    while threads > 32 and threads // lanes >= 2 * per_group:
        threads //= 2
    return Specialisation(u.dtype, states, lanes, threads, backward, B.dim() == 2, C.dim() == 2)


def backward_threads(states: int, lanes: int) -> int:
    """Of a block, so that its shared memory stays below 99 KiB, the least that GPUs have since compute capability 8."""
    return min(64 * lanes, 256 if states <= 16 else 128 if states <= 128 else 64)


def groups_of(B: Tensor, C: Tensor) -> int:
    """Of the matrix that varies; 1 if none does."""
    return next((matrix.shape[1] for matrix in (B, C) if matrix.dim() == 4), 1)


def power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def segment_length(steps: int, blocks: int, specialisation: Specialisation, processors: int) -> int:
    """Steps per segment: all, or as few as fill the machine; a multiple of WINDOW."""
    wanted = -(-_WARPS * processors // max(1, blocks * specialisation.threads // 32))
    pieces = min(wanted, steps // _SEGMENT)
    if pieces <= 2:  # running everything twice would cost what it wins
        return steps
    return -(-steps // pieces // WINDOW) * WINDOW


def common_dtype(*tensors: Any) -> torch.dtype:
    """The dtype in which all of them are read: their own if they agree and it is short, else float32."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
