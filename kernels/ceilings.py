"""What the processor's vector unit can do at best, in C++ (ceilings.cpp): `archlab bench` holds kernels against it."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from kernels import build


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled ceilings.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("ceilings.cpp"))


def vector(function: str, count: int) -> tuple[Callable[[], None], int]:
    """What computes a function of about so many numbers in the nearest cache, on torch's threads; and of how many.

    function: 'exp' or 'reciprocal'. Without a compiler torch computes it, of numbers that fit into a small cache.
    """
    built = library()
    if isinstance(built, build.BuildError):
        return _in_torch(function, count)
    per_task, threads = built.ceiling_numbers_per_task(), torch.get_num_threads()
    tasks = -(-count // (per_task * threads)) * threads
    call = getattr(built, f"ceiling_{function}")

    def work() -> None:
        call(ctypes.c_int64(tasks), ctypes.c_int64(threads))

    return work, tasks * per_task


def _in_torch(function: str, count: int) -> tuple[Callable[[], None], int]:
    numbers = torch.linspace(-1, 0, 2**15)
    results, repeats = torch.empty_like(numbers), -(-count // len(numbers))
    compute = getattr(torch, function)

    def work() -> None:
        for _ in range(repeats):
            compute(numbers, out=results)

    return work, repeats * len(numbers)
