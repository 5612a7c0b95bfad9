"""What this machine can give: cores, memory, GPUs."""

from __future__ import annotations

import itertools
import math
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

from experiments.errors import UserError

SHARE = 0.8
"""Of the free memory, what all cells together may take by default."""
COMFORT = 2 * 2**30
"""Bytes that a cell should have: no more jobs by default than that allows."""
_CGROUP = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_UNITS = {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def cores() -> int:
    """Processor cores that this process may use: of the machine's, as many as a container's limit comes to."""
    # Not on macOS.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *_quotas()]))


def default_jobs(processes: int = 1) -> int:
    """Cells at a time, each of so many processes: a core for every process, as far as memory goes."""
    return max(1, min(cores(), free_memory() // COMFORT) // processes)


def memory_limit(setting: str, processes: int) -> int | None:
    """Bytes that one of so many processes may take: `auto`, `none`, or a size such as 4GiB.

    Raises UserError for others.
    """
    if setting == "none":
        return None
    if setting == "auto":
        return int(SHARE * free_memory() / processes)
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]i?B)", setting.strip(), re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size < 1:
        raise UserError(f"memory_limit must be auto, none, or a size such as 4GiB or 500MB above 0, got {setting!r}")
    return min(size, sys.maxsize)


def free_memory() -> int:
    """Bytes that can be taken without swapping: the machine's, or what a container's limit leaves of them."""
    return max(0, min([_available(), *_within_limits()]))


def _available() -> int:
    meminfo = Path("/proc/meminfo")
    found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text()) if meminfo.exists() else None
    return int(found[1]) * 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _within_limits() -> Iterator[int]:
    """Bytes that each control group with a limit leaves; its page cache counts as free."""
    names = (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder, (limit, used, cache) in itertools.product(_control_groups("memory"), names):
        # No such group, or no limit: `max`.
        with suppress(OSError, ValueError):
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            found = re.search(rf"^{cache} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
            yield left + (int(found[1]) if found else 0)


def _quotas() -> Iterator[int]:
    """Cores, rounded up, that the processor time of each control group with a limit comes to."""
    for folder in _control_groups("cpu"):
        with suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()
            yield math.ceil(int(quota) / int(period))
        with suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:
                yield math.ceil(int(quota) / int(period))


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of the groups that this process is in and of those above, versions 2 and 1: any may limit it."""
    own = _OWN_CGROUPS.read_text() if _OWN_CGROUPS.exists() else ""
    place = {name: path for names, path in re.findall(r"^\d+:([^:\n]*):(.*)$", own, re.M) for name in names.split(",")}
    for name, root in (("", _CGROUP), (controller, _CGROUP / controller)):
        below = PurePosixPath(place.get(name, "/")).parts[1:]
        yield from (root.joinpath(*below[:depth]) for depth in range(len(below) + 1))


def visible_gpus(accelerator: str) -> list[str]:
    """The GPUs for an accelerator setting, as CUDA_VISIBLE_DEVICES names them; none where it does not want any."""
    if accelerator not in ("auto", "gpu", "cuda"):
        return []
    # Imported here: it takes seconds, and only the scheduler asks.
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return (named or [str(index) for index in range(count)])[:count]


def groups(gpus: Sequence[str], devices: int) -> tuple[str, ...]:
    """GPUs for cells that take so many each, as CUDA_VISIBLE_DEVICES names them: ("0,1", "2,3")."""
    firsts = range(0, len(gpus) - devices + 1, devices)
    return tuple(",".join(gpus[first : first + devices]) for first in firsts)
