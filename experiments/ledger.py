"""The folder of an experiment: one JSON record per cell, written whole or not at all, by one process at a time.

experiment.yaml   all that is needed to run it again        matching.json   how each variant meets the budget
cells/KEY.json    the records                               cells/KEY.log .status .ckpt   of cells that run or ran
"""

from __future__ import annotations

import fcntl
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from experiments import config, provenance
from experiments.cell import STATUSES
from experiments.config import Experiment
from experiments.errors import UserError

VERSION = 1
"""Of the record's layout."""
_RESULT = {"train": "quality", "cost": "cost"}
"""Kind of cell -> the part of a record that is done which holds its result."""
_LISTS = ("archs", "tasks")
_INCIDENTAL = ("name", "timeout", "memory_limit", "keep_checkpoints")
"""Fields of Experiment that may change from run to run of one experiment: no result depends on them."""
_LOCK = ".lock"


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically; numbers that are not finite become null. Raises OSError, and then leaves no trace."""
    write_text(path, json.dumps(_finite(data), indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file atomically: whoever reads it sees the old content or the new one, even after a power cut."""
    new = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with new.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)


class Ledger:
    """Records below a folder. What changes them runs within `locked()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / "cells"
        self.set_aside: list[Path] = []
        """Records that could not be read, under their new names."""

    def record_path(self, key: str) -> Path:
        """cells/KEY.json."""
        return self.cells / f"{key}.json"

    def status_path(self, key: str) -> Path:
        """Where a running cell tells its progress."""
        return self.cells / f"{key}.status"

    def log_path(self, key: str) -> Path:
        """Standard output and error of a cell's process."""
        return self.cells / f"{key}.log"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make the folder and hold it for this process. Raises UserError while another one does."""
        check_folder(self.folder)
        self.cells.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise UserError(
                    f"{self.folder} is in use by process {lock.read().strip() or 'unknown'}: wait for it to end, or "
                    f"choose another --out"
                ) from None
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield

    def claim(self, experiment: Experiment) -> None:
        """Write experiment.yaml; more seeds, architectures or tasks than before continue what is there.

        Raises UserError where the folder belongs to a different experiment.
        """
        path = self.folder / "experiment.yaml"
        after = config.to_dict(experiment)
        if path.exists():
            before = config.to_dict(config.load(str(path), {}))
            if changed := difference(before, after):
                name, there, here = changed
                raise UserError(
                    f"{self.folder} holds a different experiment ({name} is {there} there and {here} here): choose "
                    f"another --out, or delete that folder"
                )
        write_text(path, yaml.safe_dump(after, sort_keys=False, allow_unicode=True))

    def records(self) -> dict[str, dict[str, Any]]:
        """Every whole record by its key; one that is not is set aside as KEY.json.corrupt, never deleted."""
        records = {}
        for path in sorted(self.cells.glob("*.json")):
            record = read_record(path)
            if record is None or not _tells(record):
                self.set_aside.append(_rename(path, "corrupt"))
            else:
                records[path.stem] = record
        return records

    def supersede(self, keys: set[str]) -> list[Path]:
        """Set aside the records of other cells than these, left by code that resolved the experiment differently."""
        others = [path for path in self.cells.glob("*.json") if path.stem not in keys]
        return [_rename(path, "superseded") for path in others]

    def status(self, key: str) -> dict[str, Any]:
        """What a running cell last told; empty where there is nothing readable."""
        try:
            status = json.loads(self.status_path(key).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}

    def last_words(self, key: str) -> str:
        """The last line of a cell's log."""
        try:
            lines = self.log_path(key).read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


def check_folder(folder: Path) -> None:
    """Raises UserError where a folder holds something that is no experiment, which must not be mixed with one."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: --out expects a folder, new or of this experiment")
    if (folder / "experiment.yaml").exists() or not folder.exists():
        return
    # What begins with a dot is nobody's work: our lock, a file that a kill left half written, .DS_Store.
    if others := sorted(path.name for path in folder.iterdir() if path.name[0] != "." and path.name != "cells"):
        raise UserError(
            f"{folder} holds {others[0]} but no experiment: --out expects a folder that is new, empty, or of this "
            f"experiment"
        )


def read_record(path: Path) -> dict[str, Any] | None:
    """A record; None where the file is not there or does not hold one. Raises OSError where it cannot be read."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    named = (
        isinstance(record, dict)
        and record.get("key") == path.stem
        and record.get("status") in STATUSES
        and isinstance(record.get("cell"), dict)
    )
    return record if named else None


def _tells(record: Mapping[str, Any]) -> bool:
    """Whether a record says what was run and, where it is done, with what result."""
    if not all(isinstance(record["cell"].get(name), str) for name in ("arch", "task")):
        return False
    return record["status"] != "done" or isinstance(record.get(_RESULT.get(str(record.get("kind")), "")), dict)


def is_stale(record: Mapping[str, Any]) -> bool:
    """Whether other sources than today's computed it."""
    if record.get("sources") is None:
        # A cell that ended before it could say has no result that could go stale.
        return record["status"] == "done"
    try:
        today = provenance.sources(record["cell"]["arch"], record["cell"]["task"])
    except OSError:
        return True
    return record["sources"] != today


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting in which two experiments differ: dotted name and both values.

    None where they are the same, and where the second holds every cell of the first.
    """
    for name in after:
        there, here = before.get(name), after[name]
        if name in _INCIDENTAL or there == here or _only_adds(name, there, here):
            continue
        if isinstance(there, Mapping) and isinstance(here, Mapping):
            inner, *values = next(_differences(there, here))
            return f"{name}.{inner}", values[0], values[1]
        return name, there, here
    return None


def _only_adds(name: str, there: Any, here: Any) -> bool:
    """Whether a setting adds cells and leaves those that were there."""
    if name == "seeds":
        return bool(here > there)
    return name in _LISTS and all(item in here for item in there)


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in {**before, **after}:
        if before.get(name) != after.get(name):
            yield name, before.get(name, "not set"), after.get(name, "not set")


def _rename(path: Path, why: str) -> Path:
    """Under a name that no record has and no earlier file."""
    names = (path.with_name(f"{path.name}.{why}{count or ''}") for count in range(10**6))
    return path.rename(next(name for name in names if not name.exists()))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
