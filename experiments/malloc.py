"""What becomes of freed memory on a CPU, where the C library is glibc; elsewhere these do nothing."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h: larger blocks are mapped each by itself."""


def return_freed() -> None:
    """Give every larger block back when it is freed: what is kept is no part of what the work needs."""
    _set(mmap=2**17, trim=2**18)


def keep_freed() -> None:
    """Keep freed blocks for the next ones: pages that the system had to clear anew would cost a step some percent."""
    _set(mmap=2**25, trim=2**28)  # the largest that glibc takes for the one; the other bounds what is kept in vain


def _set(mmap: int, trim: int) -> None:
    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, mmap)
        libc.mallopt(_TRIM_THRESHOLD, trim)
