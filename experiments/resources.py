"""What this machine can give: cores, memory, GPUs."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from experiments.errors import UserError

SHARE = 0.8
"""Of the free memory, what all cells together may take by default."""
COMFORT = 2 * 2**30
"""Bytes that a cell should have: no more jobs by default than that allows."""
_CGROUP = Path("/sys/fs/cgroup")
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def cores() -> int:
    """Processor cores that this process may use."""
    # Not on macOS.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_jobs(gpus: int) -> int:
    """Cells at a time: one per GPU, else one per core as far as memory goes."""
    return gpus or max(1, min(cores(), free_memory() // COMFORT))


def memory_limit(setting: str, jobs: int) -> int | None:
    """Bytes that one of `jobs` cells may take: `auto`, `none`, or a size such as 4GiB. Raises UserError for others."""
    if setting == "none":
        return None
    if setting == "auto":
        return int(SHARE * free_memory() / jobs)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", setting.strip(), re.IGNORECASE)
    if not found:
        raise UserError(f"memory_limit must be auto, none, or a size such as 4GiB or 500MB, got {setting!r}")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def free_memory() -> int:
    """Bytes that can be taken without swapping: the machine's, or what a container's limit leaves of them."""
    return max(0, min([_available(), *_within_limits()]))


def _available() -> int:
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _within_limits() -> Iterator[int]:
    """What a control group leaves, version 2 or 1; its page cache counts as free."""
    for folder, limit, used, cache in (
        (_CGROUP, "memory.max", "memory.current", "inactive_file"),
        (_CGROUP / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            found = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        except (OSError, ValueError):
            # No such group, or no limit: `max`.
            continue
        yield left + (int(found[1]) if found else 0)


def visible_gpus(accelerator: str) -> list[str]:
    """The GPUs for an accelerator setting, as CUDA_VISIBLE_DEVICES names them; none where it does not want any."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return []
    # Imported here: it takes seconds, and only the scheduler asks.
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(index) for index in range(count)])[:count]
