"""What becomes of freed memory on a CPU, where the C library is glibc; elsewhere these do nothing."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
"""M_TRIM_THRESHOLD, M_MMAP_THRESHOLD and M_MMAP_MAX of malloc.h: larger blocks are mapped each by itself, if any."""


def return_freed() -> None:
    """Give every larger block back when it is freed: what is kept is no part of what the work needs."""
    _set(mapped=2**16, from_size=2**17, trim=2**18)


def keep_freed() -> None:
    """Keep freed blocks for the next ones, as the system clears every page anew that it hands out.

    Where blocks are mapped each time, a training step of gqa on 131072 tokens takes 1.6 times as long. The price is
    what lies between kept blocks, too small for the next one: the process holds 4.4 GiB then instead of 2.8.
    """
    _set(mapped=0, from_size=2**25, trim=2**31 - 1)


def as_usual() -> None:
    """As glibc sets itself where a program frees large blocks, though four times as much of the heap's end is kept.

    What `keep_freed` has kept beyond that is given back: otherwise it would serve for blocks that are usually mapped.
    """
    kept = 2**28
    _set(mapped=2**16, from_size=2**25, trim=kept)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(ctypes.c_size_t(kept))


def _set(mapped: int, from_size: int, trim: int) -> None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_MAX, mapped)
        libc.mallopt(_MMAP_THRESHOLD, from_size)
        libc.mallopt(_TRIM_THRESHOLD, trim)
