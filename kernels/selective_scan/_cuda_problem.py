"""What the kernels in cuda.cu are told: the structures of cuda_common.cuh, and how work is cut into blocks."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

WINDOW = 32  # steps between kept states, and that the backward pass stages at once
MOST_STATES = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_SHARED = 99 * 1024
"""Bytes of shared memory that a block may have on every GPU since compute capability 8.0."""

_SEGMENT = 4 * WINDOW  # the fewest steps that are worth a segment
_WARPS = 8  # per multiprocessor, that a channel's time is shared out for, forwards
_EACH = 8  # steps of a thread, forwards
_CHANNELS = (16, 12, 8, 6, 4, 2, 1)  # of a block, forwards
_NEAR = 2**23  # elements; of larger strides, offsets within what a block moves at once may need more than 32 bits

_VIEWS = ("u", "delta", "z", "out", "dout", "du", "ddelta", "dz")
_MATRICES = ("B", "C", "grad_B", "grad_C")
_ARRAYS = (
    *("A", "D", "bias", "initial", "dlast", "last", "dinitial"),
    *("kept", "ends", "sums", "dA", "dD", "dbias", "dB", "dC"),
    *("into_A", "into_D", "into_bias", "into_B", "into_C"),
)
_NUMBERS = (
    *("rows", "channels", "length", "groups", "states"),
    *("begin", "end", "segment", "segments", "parts", "softplus", "reverse", "more"),
)
_WORDS = 5  # of a View: data, strides of rows, channels and steps, together; of a Matrix: one stride more
_FIELDS = (
    *((name, _WORDS) for name in _VIEWS),
    *((name, _WORDS + 1) for name in _MATRICES),
    *((name, 1) for name in (*_ARRAYS, *_NUMBERS)),
)
_PLACES = {name: sum(words for _, words in _FIELDS[:k]) for k, (name, _) in enumerate(_FIELDS)}
_COUNT = sum(words for _, words in _FIELDS)
_PACKED = struct.Struct(f"{_COUNT}q")


class Problem:
    """As in cuda_common.cuh: addresses, strides and numbers, all of 64 bits."""

    SIZE = _PACKED.size

    def __init__(self) -> None:
        self._words = [0] * _COUNT

    def numbers(self, **values: int) -> None:
        """Fill in numbers by name."""
        for name, value in values.items():
            self._words[_PLACES[name]] = value

    def arrays(self, **tensors: Tensor | None) -> None:
        """Fill in addresses of contiguous float32 tensors by name."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self._words[_PLACES[name]] = tensor.data_ptr()

    def views(self, across: bool, per_group: int, **tensors: Tensor | None) -> None:
        """Fill in tensors (B, D, L) by name. across: as the specialisation says; per_group: channels of a group."""
        for name, tensor in tensors.items():
            if tensor is not None:
                place, together = _PLACES[name], _together(tensor, across, per_group)
                self._words[place : place + _WORDS] = (tensor.data_ptr(), *tensor.stride(), together)

    def matrices(self, **tensors: Tensor) -> None:
        """Fill in matrices by name, (B, G, N, L) or (D, N)."""
        for name, tensor in tensors.items():
            place, strides = _PLACES[name], tensor.stride()
            if len(strides) == 2:
                self._words[place : place + _WORDS + 1] = (tensor.data_ptr(), 0, *strides, 0, 0)
            else:
                self._words[place : place + _WORDS + 1] = (tensor.data_ptr(), *strides, _matrix_together(tensor))

    def packed(self) -> bytes:
        """The structure."""
        return _PACKED.pack(*self._words)


def _together(tensor: Tensor, across: bool, per_group: int) -> int:
    """Whether four elements can be moved at once.

    A block's first channel is a multiple of four where it is within its group, and where the groups are such.
    """
    rows, channels, steps = tensor.stride()
    if tensor.data_ptr() % (4 * tensor.element_size()) or rows % 4 or max(channels, steps) >= _NEAR:
        return 0
    if across:
        return int(channels == 1 and steps % 4 == 0 and (per_group % 4 == 0 or per_group == tensor.shape[1]))
    return int(steps == 1 and channels % 4 == 0)


def _matrix_together(matrix: Tensor) -> int:
    """1 where four steps lie together and aligned, 2 where four states do, else 0."""
    rows, groups, states, steps = matrix.stride()
    if matrix.data_ptr() % (4 * matrix.element_size()) or rows % 4 or groups % 4 or max(states, steps) >= _NEAR:
        return 0
    if steps == 1 and states % 4 == 0:
        return 1
    return 2 if states == 1 and steps % 4 == 0 and matrix.shape[2] % 4 == 0 else 0


@dataclass(frozen=True)
class Specialisation:
    """The macros of cuda.cu: one compiled module."""

    dtype: torch.dtype
    states: int
    lanes: int
    twins: int
    threads: int
    backward: bool
    across: bool
    constant_B: bool
    constant_C: bool

    @functools.cached_property
    def defines(self) -> dict[str, int]:
        """By the names in cuda_common.cuh."""
        return {
            "DTYPE": DTYPES.index(self.dtype),
            "STATES": self.states,
            "LANES": self.lanes,
            "TWINS": self.twins,
            "THREADS": self.threads,
            "BACKWARD": int(self.backward),
            "BLOCKS": self.blocks,
            "ACROSS": int(self.across),
            "CONST_B": int(self.constant_B),
            "CONST_C": int(self.constant_C),
        }

    @property
    def _lean(self) -> bool:
        """Whether 128 registers are enough for a thread: backwards at about Mamba's number of states."""
        return self.backward and self.threads == 256 and not self.constant_B and not self.constant_C

    @property
    def blocks(self) -> int:
        """How many of them a multiprocessor must have registers for: 128, 168, 200 or 255 for a thread."""
        if self.backward:
            threads = 512 if self._lean else 256
        else:
            threads = 320 if self.twins == 2 and self.dtype == torch.float32 else 384
        return max(1, threads // self.threads)

    @property
    def channels(self) -> int:
        """Of a block."""
        return self.threads // self.lanes * self.twins

    @functools.cached_property
    def shared_bytes(self) -> Mapping[str, int]:
        """Shared memory of a block, by kernel; as laid out by `tiles`, `back_tiles` and `end_tiles`."""
        return self._shared_backward() if self.backward else self._shared_forward()

    def _shared_forward(self) -> dict[str, int]:
        reach = self.lanes * _EACH
        matrices = 4 * 2 * min(16, self.states) * (reach + 4)
        inputs = 2 * self.channels * (reach * self.dtype.itemsize + 16) if self.across else 0
        size = matrices + inputs + 4 * 2 * self.channels * (self.states | 1)
        return {"scan_forward": size, "scan_ends": size, "scan_join": 0}

    def _shared_backward(self) -> dict[str, int]:
        share = (self.states + 4 * self.lanes - 1) // (4 * self.lanes) * 4
        padded, tile = share * self.lanes, self.channels * WINDOW
        part = 8 if share <= 4 else 4 if share <= 8 else 2
        copies, buffers = min(4, 32 // self.lanes), 1 if padded > 32 else 2
        matrices = (2 - self.constant_B - self.constant_C) * WINDOW * (copies * padded + 4)
        sums = buffers * self.threads // 32 * 2 * part * padded
        totals = (share * (1 + self.constant_B + self.constant_C) + 2) * self.threads
        before = (WINDOW // part - 1) * share * self.threads
        backward = matrices + before + sums + 4 * tile + totals
        ends = 2 * tile + WINDOW * (padded + 4)
        return {"scan_backward": 4 * backward, "scan_ends_reverse": 4 * ends, "scan_join": 0, "scan_sums": 0}


def specialise(u: Tensor, A: Tensor, B: Tensor, C: Tensor, backward: bool, processors: int) -> Specialisation:
    """The module for these tensors."""
    constant, across = (B.dim() == 2, C.dim() == 2), u.stride(1) == 1 and u.stride(2) != 1
    return _specialise(u.dtype, tuple(u.shape), A.shape[1], groups_of(B, C), backward, across, constant, processors)


@functools.lru_cache(maxsize=4096)
def _specialise(
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    states: int,
    groups: int,
    backward: bool,
    across: bool,
    constant: tuple[bool, bool],
    processors: int,
) -> Specialisation:
    rows, channels, length = shape
    per_group = channels // groups
    across = across and per_group >= 4
    if backward:
        lanes, twins = min(32, power_of_two(-(-states // 4))), 1
        threads = backward_threads(states, lanes)
        while threads > 32 and threads // lanes >= 2 * per_group:
            threads //= 2
    else:
        lanes, twins = _forward_lanes(rows * channels, length, per_group, processors)
        threads = _forward_threads(rows * groups, per_group, lanes // twins, across, processors)
    across = across and threads // lanes * twins >= 4
    found = Specialisation(dtype, states, lanes, twins, threads, backward, across, *constant)
    while not backward and max(found.shared_bytes.values()) > LEAST_SHARED:
        found = replace(found, lanes=found.lanes // 2, threads=found.threads // 2)
    return found


def _forward_lanes(channels: int, length: int, per_group: int, processors: int) -> tuple[int, int]:
    """Threads of a channel and channels of a thread: the more threads, the fewer channels it takes to fill the machine;
    the fewer, the less they have to exchange and to read."""
    lanes = 8
    if per_group > 1 and channels // 2 * lanes // 32 >= _WARPS * processors:
        return lanes, 2
    while lanes < 32 and lanes * _EACH < length and channels * lanes // 32 < _WARPS * processors:
        lanes *= 2
    return lanes, 1


def _forward_threads(groups: int, per_group: int, per_channel: int, across: bool, processors: int) -> int:
    """Of a block: for so many channels that the multiprocessor with most of them has few, but rather for many, which
    share what they read; where channels lie together, a multiple of four."""

    def most(count: int) -> int:
        return -(-groups * -(-per_group // count) // processors) * count

    usable = [count for count in _CHANNELS if count * per_channel % 32 == 0 and not (across and count % 4)]
    return min(usable, key=most) * per_channel


def backward_threads(states: int, lanes: int) -> int:
    """Of a block, so that its shared memory stays below LEAST_SHARED."""
    return min(64 * lanes, 256 if states <= 16 else 128 if states <= 128 else 64)


def groups_of(B: Tensor, C: Tensor) -> int:
    """Of the matrix that varies; 1 if none does."""
    return B.shape[1] if B.dim() == 4 else C.shape[1] if C.dim() == 4 else 1


def power_of_two(number: int) -> int:
    """The least that is not smaller."""
    return 1 << max(0, number - 1).bit_length()


def segment_length(steps: int, blocks: int, specialisation: Specialisation, processors: int) -> int:
    """Steps per segment, a multiple of WINDOW: all of them, or so many that the blocks fill the machine once.

    Forwards a segment's end costs nearly as much as the pass itself, backwards a quarter of it.
    """
    pieces = min(processors * specialisation.blocks // blocks, steps // _SEGMENT)
    if pieces < (2 if specialisation.backward else 3):
        return steps
    return -(-steps // pieces // WINDOW) * WINDOW


def common_dtype(*tensors: Any) -> torch.dtype:
    """The dtype in which all of them are read: their own if they agree and it is short, else float32."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32
