"""How a cell ended: from the exception that ended it, or from the words of a process that could not say more."""

from __future__ import annotations

import errno
from typing import Any

from experiments.errors import UserError

OUT_OF_MEMORY = (
    "can't allocate memory", "cannot allocate memory", "out of memory", "std::bad_alloc", "memoryerror",
    "can't start new thread", "thread creation failed", "_status_alloc_failed",
)  # fmt: skip
"""What torch's CPU allocator, CUDA and its libraries, C++, Python's threads and OpenMP say, in small letters."""


def classify(error: Exception) -> dict[str, Any]:
    """Status and reason of a cell that ended with an exception, and what it had reached."""
    # Imported here: it brings torch.
    from experiments.callbacks import Diverged

    if isinstance(error, Diverged):
        return {"status": "nan", "reason": str(error), "quality": error.quality}
    if is_out_of_memory(error):
        return {"status": "oom", "reason": f"out of memory: {_first_line(error)}"}
    if isinstance(error, UserError):
        return {"status": "failed", "reason": str(error)}
    return {"status": "failed", "reason": f"{type(error).__name__}: {_first_line(error)}"}


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out, on whichever device and whoever noticed."""
    import torch

    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and says_out_of_memory(str(error))


def says_out_of_memory(words: str) -> bool:
    """Whether that is how a library tells that memory ran out."""
    return any(sign in words.lower() for sign in OUT_OF_MEMORY)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "no message")
