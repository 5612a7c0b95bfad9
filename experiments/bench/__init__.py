"""`archlab bench`: kernels and training steps against their peers and against the ceilings of this very machine.

One file here is one benchmark, found by its name: `cases(device)` yields its lines. Peers are used where they can be
imported, and named as missing where not; nothing here depends on them.
"""

from __future__ import annotations

import importlib
import itertools
import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import kernels
from experiments import malloc, measure, strict
from experiments.bench import _measure
from experiments.errors import UserError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The benchmarks that exist: the files in this folder."""
    return sorted(file.stem for file in _HERE.glob("[!_]*.py"))


def bench(only: Sequence[str] | None, device: str | None, out: Path, console: Console) -> int:
    """Run benchmarks, print their table and write it as JSON; returns the exit status 0.

    only: names of benchmarks, all by default. device: 'cpu', 'cuda', ...; 'cpu' by default. out: the JSON file, written
    after every case: an interrupted run keeps what it has, and shows it. Raises UserError for what does not exist.
    """
    chosen = _known(only)
    where = _device(device or "cpu")
    kernels.forget()
    malloc.keep_freed()
    records: list[dict[str, Any]] = []
    try:
        with Progress(TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task("starting", total=None)
            for done, name in enumerate(chosen):
                bar.update(task, total=len(chosen), completed=done)
                for case in importlib.import_module(f"experiments.bench.{name}").cases(where):
                    record = _measure.run(case, where, lambda said: bar.update(task, description=said))
                    records.append({"benchmark": name, **record})
                    _write(records, where, out)
            bar.update(task, completed=len(chosen), description="done")
    finally:
        if records:
            console.print(table(records))
            console.print(f"{_machine_line(where)}; {out}", soft_wrap=True, markup=False, highlight=False)
    return 0


def _write(records: Sequence[dict[str, Any]], device: torch.device, out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"machine": _machine(device), "records": records}, indent=1) + "\n")


def table(records: Sequence[dict[str, Any]]) -> Table:
    """One line per case: times in milliseconds, memory in MiB above what was held before."""
    shown = Table(caption="floor: what the ceilings of this run allow; x: how many times longer the peer took")
    shown.add_column("case", min_width=20)
    for column in ("floor", "ours", "of ceiling", "memory"):
        shown.add_column(column, justify="right", no_wrap=True)
    shown.add_column("peers", no_wrap=True)
    for name, cases in itertools.groupby(records, key=lambda record: record["benchmark"]):
        shown.add_section()
        shown.add_row(f"[bold]{name}")
        for record in cases:
            shown.add_row(*_row(record))
    return shown


def _name(record: dict[str, Any]) -> str:
    each = record["ns_per_element"]
    return record["name"] if each is None else f"{record['name']}: {each:.3g} ns each"


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    share = record["share_of_ceiling"]
    return (
        record["name"],
        _milliseconds(record["floor_seconds"]),
        _milliseconds(record["seconds"]),
        "" if share is None else f"{share:.0%}",
        _mebibytes(record["peak_bytes"]),
        "\n".join(_peer(name, peer) for name, peer in record["peers"].items()),
    )


def _peer(name: str, peer: dict[str, Any]) -> str:
    if "missing" in peer:
        return f"{name}: {peer['missing']}"
    return f"{peer['ratio']:.2f}x {name}, {_milliseconds(peer['seconds'])} ms, {_mebibytes(peer['peak_bytes'])} MiB"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:.0f}"


def _known(only: Sequence[str] | None) -> list[str]:
    known = names()
    for name in only or ():
        if name not in known:
            raise UserError(f"unknown benchmark {name!r}: {strict.nearest(name, known)}")
    return known if only is None else list(only)


def _device(name: str) -> torch.device:
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used ({reason}): leave --device out to measure the CPU") from error


def _machine(device: torch.device) -> dict[str, Any]:
    return {
        "device": measure.device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "backends": kernels.ran(),
    }


def _machine_line(device: torch.device) -> str:
    machine = _machine(device)
    return f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}"
