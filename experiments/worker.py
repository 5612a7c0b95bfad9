"""A cell's own process: under a memory limit, with a log of its own, ending in exactly one record."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from experiments import endings, ledger, provenance
from experiments.cell import Cell

STATUS_EVERY = 0.5
"""Seconds between two versions of the status file."""


def work(
    cell_json: dict[str, Any],
    folder: str,
    threads: int,
    memory_limit: int | None = None,
    keep_checkpoint: bool = False,
) -> None:
    """Run one cell and write its record; the target of a child process.

    memory_limit: bytes of private memory; None = no limit. The record's "matching" is the parent's to add.
    """
    cell, root = Cell.from_json(cell_json), Path(folder)
    cells = root / "cells"
    cells.mkdir(parents=True, exist_ok=True)
    isolate(cells / f"{cell.key}.log")
    with limited(memory_limit):
        record = run(cell, root, threads, reporter(cells / f"{cell.key}.status"))
    ledger.write_json(cells / f"{cell.key}.json", record)
    (cells / f"{cell.key}.status").unlink(missing_ok=True)
    if record["status"] in {"done", "nan"} and not keep_checkpoint:
        # The others may be tried again, from where they were: with more memory, say.
        (cells / f"{cell.key}.ckpt").unlink(missing_ok=True)


def isolate(log: Path) -> None:
    """Send standard output and error to the log, leave Ctrl-C to the parent, and die first when memory runs short."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


@contextmanager
def limited(memory_limit: int | None) -> Iterator[None]:
    """Within, private memory beyond the limit cannot be allocated; writing the record afterwards is free again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if memory_limit is not None:
        allowed = memory_limit if hard == resource.RLIM_INFINITY else min(memory_limit, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def reporter(path: Path) -> Callable[[dict[str, Any]], None]:
    """A function that writes progress to the status file, as often as anybody would look; never half a file."""
    begun = time.monotonic()
    written = -STATUS_EVERY

    def report(progress: dict[str, Any]) -> None:
        nonlocal written
        now = time.monotonic() - begun
        if now - written < STATUS_EVERY:
            return
        written = now
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps({**progress, "seconds": round(now, 2)}))
        os.replace(new, path)

    return report


def run(cell: Cell, folder: Path, threads: int, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The record of a cell, however it ends."""
    started, begun = datetime.now(UTC), time.monotonic()
    record = {
        "version": 1,
        "key": cell.key,
        "kind": cell.kind,
        "status": "done",
        "reason": None,
        "cell": cell.to_json(),
        "log": f"cells/{cell.key}.log",
    }
    try:
        record |= describe(cell, threads)
        record |= _compute(cell, folder, report)
    except Exception as error:
        traceback.print_exc()
        # What the failed calls held is free again: the record needs a little memory itself.
        traceback.clear_frames(error.__traceback__)
        record |= endings.classify(error)
    return record | {
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.monotonic() - begun, 3),
    }


def describe(cell: Cell, threads: int) -> dict[str, Any]:
    """What the cell runs on and what it reads: the record's "environment", "data" and "sources"."""
    # Imported here: a child that cannot import torch or the data must still end in a record.
    import torch

    from experiments import data, measure, tasks

    torch.set_num_threads(threads)
    device = measure.device(cell.train.accelerator)
    task = tasks.make(cell.task, **cell.task_config)
    return {
        "environment": {
            "device": device.type,
            "device_name": measure.device_name(device),
            "precision": cell.train.precision,
            "threads": threads,
            **provenance.environment(),
        },
        "data": {"fingerprint": data.fingerprint(task, cell.seed), **data.describe(task)},
        "sources": provenance.sources(cell.arch, cell.task),
    }


def _compute(cell: Cell, folder: Path, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    from experiments import measure, training

    return training.train(cell, folder, report) if cell.kind == "train" else measure.measure(cell, report)
