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
from experiments.profile import limits
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

    memory_limit: bytes of private memory beyond what the process begins with, or of the GPU's; None = no limit.
    """
    point, cells = Point.from_json(point_json), Path(folder) / "cells"
    worker.isolate(cells / f"{point.key}.log")
    bounded = point.device == "cpu" and point.kind == "measured" and memory_limit is not None
    if bounded:
        _import_all()
    with worker.limited(limits.at_start(threads) + (memory_limit or 0) if bounded else None):
        record = run(point, threads, memory_limit, worker.reporter(cells / f"{point.key}.status"), Path(folder))
    ledger.write_json(cells / f"{point.key}.json", record)
    (cells / f"{point.key}.status").unlink(missing_ok=True)


def _import_all() -> None:
    """What a point imports is no part of its limit."""
    import torch._dynamo  # by fake tensors, at first use

    from experiments.profile import frontier, measure, predict, trace

    assert all((torch._dynamo, frontier, measure, predict, trace))


def run(
    point: Point, threads: int, memory_limit: int | None, report: Callable[[dict[str, Any]], None], folder: Path
) -> dict[str, Any]:
    """The record of a point, however it ends. folder: the profile's, for traces."""
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
        record |= _compute(point, threads, memory_limit, tell, folder)
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
    point: Point, threads: int, memory_limit: int | None, report: Callable[[dict[str, Any]], None], folder: Path
) -> dict[str, Any]:
    """The record's "environment", "ran" and results."""
    import torch

    import kernels
    from experiments import measure
    from experiments.profile.frontier import MOST, search
    from experiments.profile.measure import measured
    from experiments.profile.predict import predictor
    from experiments.profile.trace import trace

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
        with predictor(point) as at:
            results: dict[str, Any] = {"results": [at(context) for context in point.contexts]}
            if point.limit is not None:
                reach = results["frontier"] = search(lambda context: at(context)["needed_bytes"], point.limit)
                # Beside what will be measured there.
                results["results"] += [at(reach)] if 0 < reach < MOST and reach not in point.contexts else []
        return {"environment": environment, **results, "ran": kernels.ran()}
    if point.device == "cuda" and memory_limit is not None:
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, memory_limit / whole))
    if point.kind == "traced":
        return {"environment": environment, "result": {"trace": trace(point, folder)}, "ran": kernels.ran()}
    return {"environment": environment, "result": measured(point, memory_limit, report), "ran": kernels.ran()}
