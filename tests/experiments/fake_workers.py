"""Workers for the scheduler's tests: each ends in one of the ways that a real one may, at once."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from experiments import ledger, provenance
from experiments.cell import Cell


def record(cell: Cell, **parts: Any) -> dict[str, Any]:
    """A record that ended well, but for `parts`."""
    rows = {str(length): {"token_accuracy": 0.5, "exact_match": 0.25, "loss": 1.0} for length in (4, 6, 8, 10, 12)}
    quality = {"validation": rows, "test": rows, "curve": [], "steps": 3, "parameters": 10, "core_parameters": 8}
    return {
        "version": 1,
        "key": cell.key,
        "kind": cell.kind,
        "status": "done",
        "reason": None,
        "cell": cell.to_json(),
        "quality" if cell.kind == "train" else "cost": quality if cell.kind == "train" else {},
        "data": {"fingerprint": "same"},
        "sources": provenance.sources(cell.arch, cell.task),
        "environment": {"device": "cpu", "pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")},
        "log": f"cells/{cell.key}.log",
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:00:01+00:00",
        "seconds": 1.0,
        **parts,
    }


def finish(cell_json: dict[str, Any], folder: str, threads: int, memory_limit: int | None, **options: Any) -> None:
    """End well."""
    cell = Cell.from_json(cell_json)
    path = Path(folder) / "cells" / f"{cell.key}.json"
    asked = {"threads": threads, "memory_limit": memory_limit, **options}
    ledger.write_json(path, record(cell, asked=asked))


def act(cell_json: dict[str, Any], folder: str, threads: int, memory_limit: int | None, **options: Any) -> None:
    """Do what the cell's label says."""
    cell = Cell.from_json(cell_json)
    cells = Path(folder) / "cells"
    (cells / f"{cell.key}.pid").write_text(str(os.getpid()))
    (cells / f"{cell.key}.log").write_text("one line\nits last words\n")
    ACTS[cell.label.partition(" ")[0]](cell, cells)
    finish(cell_json, folder, threads, memory_limit, **options)


def sleep(cell: Cell, cells: Path) -> None:
    """Say how far it is, and go no further."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    (cells / f"{cell.key}.status").write_text(json.dumps({"phase": "train", "step": 7, "steps": 9, "loss": 0.5}))
    time.sleep(600)


def nap(cell: Cell, cells: Path) -> None:
    """Take long enough to be seen beside others."""
    begun = time.time()
    time.sleep(1)
    (cells / f"{cell.key}.span").write_text(json.dumps([begun, time.time()]))


def allocate(cell: Cell, cells: Path) -> None:
    """Take more than the limit that it sets itself, as a worker does."""
    resource.setrlimit(resource.RLIMIT_DATA, (2**20, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    _ = bytearray(2**28)


def abort(cell: Cell, cells: Path) -> None:
    """What C++ does where memory runs out in a thread of its own."""
    words = "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc\n"
    (cells / f"{cell.key}.log").write_text(words)
    os.abort()


def crash(cell: Cell, cells: Path) -> None:
    """An access that no process survives."""
    ctypes.string_at(0)


ACTS: dict[str, Any] = {
    "done": lambda cell, cells: None,
    "sleep": sleep,
    "nap": nap,
    "allocate": allocate,
    "abort": abort,
    "crash": crash,
    "killed": lambda cell, cells: os.kill(os.getpid(), signal.SIGKILL),
    "raise": lambda cell, cells: sys.exit("no record"),
    "silent": lambda cell, cells: os._exit(0),
    "torn": lambda cell, cells: (cells / f"{cell.key}.json").write_text('{"key": "') and os._exit(0),
    "interrupted": lambda cell, cells: os.kill(os.getpid(), signal.SIGINT),
}


def fail_once(cell_json: dict[str, Any], folder: str, threads: int, memory_limit: int | None, **options: Any) -> None:
    """Fail the first time, end well the second."""
    mark = Path(folder) / "cells" / f"{Cell.from_json(cell_json).key}.tried"
    if not mark.exists():
        mark.touch()
        sys.exit("not yet")
    finish(cell_json, folder, threads, memory_limit, **options)


def prefer(cell_json: dict[str, Any], folder: str, threads: int, memory_limit: int | None, **options: Any) -> None:
    """Score best at a rate of 0.01; diverge at 0.1."""
    cell = Cell.from_json(cell_json)
    score = 0.9 if cell.lr == 0.01 else 0.5
    rows = {str(length): {"token_accuracy": score, "loss": 1.0} for length in (4, 6, 8, 10, 12)}
    made = record(cell, quality={"validation": rows, "test": rows, "curve": []})
    if cell.lr == 0.1 and cell.kind == "train":
        made |= {"status": "nan", "reason": "loss is nan at step 3"}
    ledger.write_json(Path(folder) / "cells" / f"{cell.key}.json", made)
