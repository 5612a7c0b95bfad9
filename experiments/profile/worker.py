"""A point's own process: under a memory limit, with a log of its own, ending in exactly one record."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments import endings, ledger, provenance, worker
from experiments.profile.point import Point
from experiments.profile.sources import digest


def work(
    point_json: dict[str, Any],
    folder: str,
    threads: int,
    memory_limit: int | None = None,
    keep_checkpoint: bool = False,
) -> None:
    """Run one point and write its record; the target of a child process, as `experiments.worker.work` is.

    memory_limit: bytes of private memory, or of the GPU's; None = no limit.
    """
    point, cells = Point.from_json(point_json), Path(folder) / "cells"
    worker.isolate(cells / f"{point.key}.log")
    on_cpu = point.device == "cpu" and point.kind == "measured"
    with worker.limited(memory_limit if on_cpu else None):
        record = run(point, threads, memory_limit, worker.reporter(cells / f"{point.key}.status"))
    ledger.write_json(cells / f"{point.key}.json", record)
    (cells / f"{point.key}.status").unlink(missing_ok=True)


def run(
    point: Point, threads: int, memory_limit: int | None, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The record of a point, however it ends."""
    started, begun = datetime.now(UTC), time.monotonic()
    record: dict[str, Any] = {
        "version": ledger.VERSION,
        "key": point.key,
        "kind": point.kind,
        "status": "done",
        "reason": None,
        "cell": point.to_json(),
        "memory_limit": memory_limit,
        "log": f"cells/{point.key}.log",
        "sources": digest(point.arch),
    }
    told: dict[str, Any] = {}

    def tell(progress: dict[str, Any]) -> None:
        told.update(progress)
        report(progress)

    try:
        record |= _compute(point, threads, memory_limit, tell)
    except Exception as error:
        traceback.print_exc()
        # What the failed calls held is free again: the record needs a little memory itself.
        traceback.clear_frames(error.__traceback__)
        # What was known before the end is a result.
        record |= endings.classify(error) | told
    return record | {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 3),
    }


def _compute(
    point: Point, threads: int, memory_limit: int | None, report: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """The record's "environment", "ran" and results."""
    import torch

    import kernels
    from experiments import measure
    from experiments.profile.measure import measured
    from experiments.profile.predict import predict

    # What is there already stays: looking through it takes a quarter of a second each time that memory is settled.
    gc.freeze()
    torch.set_num_threads(threads)
    environment = {
        "device": point.device,
        "device_name": measure.device_name(torch.device(point.device)),
        "threads": threads,
        **provenance.environment(),
    }
    if point.kind == "predicted":
        return {"environment": environment, "results": predict(point), "ran": kernels.ran()}
    if point.device == "cuda" and memory_limit is not None:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_limit / whole))
    return {"environment": environment, "result": measured(point, report), "ran": kernels.ran()}
