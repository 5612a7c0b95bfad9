"""How things are timed: what is compared takes turns, so that a busy machine is busy for all; medians are reported."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

import kernels
from experiments import malloc, measure
from kernels import ceilings, gpu_ceilings

LEAST, MOST = 3, 30
"""Timings of each contestant: at least, at most."""
SECONDS = {"cpu": 4.0, "cuda": 1.0}
"""What the timings of one case may take together, beyond the least number of them; a GPU is not shared."""
SHORT = 4.0
"""Seconds; what takes less is run more than once in its turn, and the first run does not count."""

IN_A_ROW = {"cpu": 0.5, "cuda": 0.01}
"""Seconds that the runs of a turn may take together, beyond the first two."""
RUNS = 10
"""That count in a turn, at most."""

Work = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """One line of the table: something to compute, by us and by others.

    floor: ceiling -> how much of it is needed at least: 'exp' and 'reciprocal' (numbers), 'copy' (bytes read or
    written), 'gemm' (floating point operations). together: whether these add up; else the largest counts.
    peers: name -> what does the same, or why there is nothing.
    elements: how many numbers are computed, where the time of one is of interest.
    """

    name: str
    ours: Work
    floor: Mapping[str, float]
    peers: Mapping[str, Work | str] = field(default_factory=dict)
    together: bool = False
    elements: int | None = None


def ceiling(name: str, device: torch.device) -> tuple[Work, float] | None:
    """Something that takes a few milliseconds and does nothing but what the ceiling is about, and how much of it.

    None where there is no way to tell.
    """
    if name == "copy":
        source = torch.ones(2**24 if device.type == "cpu" else 2**28, device=device)
        target = torch.empty_like(source)
        target.zero_()
        return lambda: target.copy_(source), 2 * source.nbytes
    if name == "gemm":
        size = 768 if device.type == "cpu" else 8192
        return _fastest_product(size, device), 2 * size**3
    return ceilings.vector(name, 2**25) if device.type == "cpu" else gpu_ceilings.vector(name, 2**34, device)


def _fastest_product(size: int, device: torch.device) -> Work:
    """Of square matrices, by the backend of ours that takes the least time."""
    left, right = (torch.randn(size, size, device=device) for _ in range(2))

    def by(backend: str) -> Work:
        return lambda: kernels.linear(left, right, backend=backend)

    usable = [name for name, reason in kernels.backends("linear", left.dtype, device).items() if reason is None]
    times = _take_turns({name: by(name) for name in usable}, device)
    return by(min(times, key=lambda name: statistics.median(times[name])))


def timed(work: Work, device: torch.device) -> float:
    """Seconds that it takes until the device is done, of which launching may be a part."""
    _synchronize(device)
    begun = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - begun


def run(case: Case, device: torch.device, told: Callable[[str], None]) -> dict[str, Any]:
    """The case's record: medians in seconds, the floor of the same run, ratios, and peaks of memory.

    told: what is being done now.
    """
    limits = {name: found for name in case.floor if (found := ceiling(name, device)) is not None}
    works: dict[str, Work] = {"ours": case.ours}
    works |= {name: peer for name, peer in case.peers.items() if not isinstance(peer, str)}
    memory: dict[str, int | None] = {}
    failed: dict[str, str] = {name: peer for name, peer in case.peers.items() if isinstance(peer, str)}
    for name in list(works):
        told(f"{case.name}: {name}, first run")
        try:
            works[name]()
            memory[name] = _peak(getattr(works[name], "eager", works[name]), device)
        except (RuntimeError, MemoryError) as error:
            if name == "ours":
                raise
            failed[name] = " ".join(str(error).split())[:120]
            del works[name]
    told(f"{case.name}: {', '.join(works)}")
    next_to_ours = {f"ceiling {name}": work for name, (work, _) in limits.items()}
    contestants = {"ours": case.ours} | next_to_ours | works
    times = _take_turns(contestants, device)
    return _record(case, times, {name: amount for name, (_, amount) in limits.items()}, memory, failed)


def _take_turns(contestants: Mapping[str, Work], device: torch.device) -> dict[str, list[float]]:
    """Seconds of each, after one warm-up of each; the garbage collector looks at nothing older meanwhile.

    What is freed is kept as their users have it: ours as in training, the others' by the C library's own rules.
    """
    gc.freeze()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    settings = {name: malloc.keep_freed if name == "ours" else malloc.as_usual for name in contestants}
    for name, work in contestants.items():
        settings[name]()
        work()
    begun = time.perf_counter()
    for turn in range(MOST):
        if turn >= LEAST and time.perf_counter() - begun > SECONDS[device.type]:
            break
        for name, work in contestants.items():
            settings[name]()
            times[name].append(_warm(work, device))
    gc.unfreeze()
    malloc.keep_freed()  # as in training, for what the next case makes
    return times


def _warm(work: Work, device: torch.device) -> float:
    """Seconds of a run that follows one of its own, unless that takes long: caches and memory are not the others'.

    Of several such runs, where they are short: on a CPU their median, on a GPU what they take together, divided by
    their number, since waiting for it is no part of them then.
    """
    seconds = timed(work, device)
    if seconds >= SHORT:
        return seconds
    times = max(1, min(RUNS, int(IN_A_ROW[device.type] / seconds)))
    if device.type == "cpu":
        return statistics.median(timed(work, device) for _ in range(times))

    def in_a_row() -> None:
        for _ in range(times):
            work()

    return timed(in_a_row, device) / times


def _record(
    case: Case,
    times: Mapping[str, list[float]],
    amounts: Mapping[str, float],
    memory: Mapping[str, int | None],
    failed: Mapping[str, str],
) -> dict[str, Any]:
    medians = {name: statistics.median(values) for name, values in times.items()}
    whole = sum if case.together else max
    floors = _floors(case, medians, amounts)
    turns = (dict(zip(times, turn, strict=True)) for turn in zip(*times.values(), strict=True))
    at_least = [whole(_floors(case, turn, amounts).values()) for turn in turns] if floors else []
    peers = {
        name: {
            "seconds": medians[name],
            "ratio": _ratio(times[name], times["ours"]),
            "peak_bytes": memory[name],
        }
        for name in case.peers
        if name in medians
    }
    return {
        "name": case.name,
        "seconds": medians["ours"],
        "ns_per_element": medians["ours"] / case.elements * 1e9 if case.elements else None,
        "repeats": len(times["ours"]),
        "peak_bytes": memory["ours"],
        "floor_seconds": whole(floors.values()) if floors else None,
        "floors": floors,
        "share_of_ceiling": _ratio(at_least, times["ours"]) if floors else None,
        "ceilings": {name: amount / medians[f"ceiling {name}"] for name, amount in amounts.items()},
        "peers": peers | {name: {"missing": reason} for name, reason in failed.items()},
    }


def _floors(case: Case, seconds: Mapping[str, float], amounts: Mapping[str, float]) -> dict[str, float]:
    """Seconds that each ceiling allows the case, if what shows the ceiling took so many."""
    return {name: case.floor[name] / amount * seconds[f"ceiling {name}"] for name, amount in amounts.items()}


def _ratio(theirs: list[float], ours: list[float]) -> float:
    """The median of the ratios of the turns: what disturbs one turn disturbs both."""
    return statistics.median(a / b for a, b in zip(theirs, ours, strict=True))


def _peak(work: Work, device: torch.device) -> int | None:
    """Bytes at the peak of one run, above what is held before; None where the system does not tell."""
    gc.collect()
    before = measure.allocated(device)
    work()
    after = measure.most_allocated(device)
    return None if before is None or after is None else after - before


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
