"""The memory limit of a point on a CPU: of what the point itself takes, not the interpreter and its libraries."""

from __future__ import annotations

import re
import resource
from pathlib import Path

LIBRARIES, STACK = 64 * 2**20, 8 * 2**20
"""Bytes that libraries take for themselves at first use, after a point has begun, and each of their threads."""
UNSEEN = 24 * 2**20
"""Bytes beside tensors that a point may take once its libraries have: nodes of the autograd graph, rounding."""


def held() -> int:
    """Bytes of private memory as RLIMIT_DATA counts them; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    found = re.search(r"VmData:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def at_start(threads: int) -> int:
    """Bytes to be allowed beyond a point's limit before anything has been run: the most that libraries may come to."""
    return held() + LIBRARIES + threads * STACK


def tighten(limit: int, own: int) -> None:
    """From now on, allow so many bytes beyond what is held beside a point's `own`: libraries have taken theirs."""
    now = held()
    if now:
        soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
        allowed = now - own + limit + UNSEEN
        resource.setrlimit(resource.RLIMIT_DATA, (min(allowed, *(one for one in (soft, hard) if one >= 0)), hard))
