"""One record of the ledger as the report reads it: any part may be missing, and it may be stale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import ledger, provenance


@dataclass(frozen=True)
class Entry:
    """One record."""

    data: Mapping[str, Any]
    stale: str | None
    """Why its result is not of the sources that are here; None where it is."""

    def get(self, *path: str | int) -> Any:
        """What lies at a path; None where any part of it is missing."""
        found: Any = self.data
        for name in path:
            if isinstance(found, Mapping):
                found = found.get(str(name))
            else:
                return None
        return found

    def number(self, *path: str | int) -> float | None:
        """A finite number at a path."""
        found = self.get(*path)
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None
        return found if math.isfinite(found) else None

    @property
    def label(self) -> str:
        return str(self.get("cell", "label") or "?")

    @property
    def arch(self) -> str:
        """The architecture's base name, of which a label is a variant."""
        spec = str(self.get("cell", "arch") or self.label.partition(":")[0])
        return Path(spec).stem if spec.endswith(".py") else spec

    @property
    def task(self) -> str:
        return str(self.get("cell", "task_label") or "?")

    @property
    def kind(self) -> str:
        return str(self.get("kind") or self.get("cell", "kind") or "?")

    @property
    def status(self) -> str:
        return str(self.get("status") or "?")

    @property
    def seed(self) -> int:
        return int(self.number("cell", "seed") or 0)

    @property
    def lr(self) -> float | None:
        return self.number("cell", "lr")

    @property
    def fallback(self) -> str | None:
        """The slow backend that stood in for a fast one."""
        found = self.get("ran", "fallback")
        return str(found) if found else None

    @property
    def usable(self) -> bool:
        """Whether its numbers may stand in a table."""
        return self.status == "done" and self.stale is None

    def score(self, metric: str, lengths: Iterable[int], split: str = "test") -> float | None:
        """The mean of a metric over lengths; None where one of them has no finite value."""
        values = [self.number("quality", split, length, metric) for length in lengths]
        known = [value for value in values if value is not None]
        return math.fsum(known) / len(known) if known and len(known) == len(values) else None


Sources = Callable[[str, str], str | None]


def read(file: Path, sources: Sources) -> Entry | None:
    """A record; None where the file does not hold one. sources: of an architecture and a task, such as `sources`."""
    data = ledger.read_record(file)
    return None if data is None else Entry(data, _staleness(Entry(data, None), sources))


def sources(arch: str, task: str) -> str | None:
    """The digest of today's sources; None where a file of the user's is gone."""
    try:
        return provenance.sources(arch, task)
    except OSError:
        return None


def _staleness(entry: Entry, sources: Sources) -> str | None:
    recorded = entry.get("sources")
    if recorded is None:
        # A cell that was killed says nothing of its sources, and nothing that could go stale.
        return "it does not say of which sources" if entry.status == "done" else None
    current = sources(str(entry.get("cell", "arch")), str(entry.get("cell", "task")))
    if current is None:
        return "a source file of its own is gone"
    return None if recorded == current else "the sources have changed since"
