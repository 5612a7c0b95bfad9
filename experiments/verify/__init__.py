"""`archlab verify`: published behaviours that this lab reproduces, each held to a tolerance that is stated beside it.

One file here is one behaviour, found by its name:
    CLAIM       what was published, with its numbers
    SOURCE      where
    HOLDS_IF    the tolerance
and either
    check() -> Finding                       for what arithmetic or a kernel alone can show, or
    EXPERIMENT, judge(accuracy) -> Finding   for what must be trained: settings of `experiments.compare`, and what the
                                             scores of all its cells say
"""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.markup import escape

from experiments import strict
from experiments.errors import UserError

_HERE = Path(__file__).parent

Accuracy = Mapping[str, Mapping[int, float]]
"""Architecture -> length -> token accuracy on test examples, the mean over seeds."""


@dataclass(frozen=True)
class Finding:
    """What was seen here."""

    here: str
    """With its numbers, in one line."""
    holds: bool


def names() -> list[str]:
    """The behaviours that can be verified: the files in this folder."""
    return sorted(file.stem for file in _HERE.glob("[!_]*.py"))


def verify(only: Sequence[str] | None, out: Path, console: Console) -> int:
    """Reproduce behaviours and say which hold; 0 if all do, else 1.

    only: their names, all by default. out: a folder for `verify.json` and, one each, the comparisons that are run;
    what is recorded there already, by the same sources, is not trained again. Raises UserError for an unknown name.
    """
    wanted = _known(only)
    found = {}
    for number, name in enumerate(wanted, 1):
        module = importlib.import_module(f"experiments.verify.{name}")
        console.print(f"[bold]{number}/{len(wanted)} {name}[/]: {escape(module.CLAIM)}", soft_wrap=True)
        found[name] = finding = _finding(module, out / name, console)
        console.print(f"    holds if {escape(module.HOLDS_IF)} ({escape(module.SOURCE)})", soft_wrap=True)
        verdict = "[green]holds[/]" if finding.holds else "[red]does not hold[/]"
        console.print(f"    {verdict}: {escape(finding.here)}\n", soft_wrap=True)
    _write(found, out / "verify.json")
    failed = [name for name, finding in found.items() if not finding.holds]
    console.print(
        f"{len(found) - len(failed)} of {len(found)} hold{_named(failed)}; {out / 'verify.json'}", soft_wrap=True
    )
    return 1 if failed else 0


def _known(only: Sequence[str] | None) -> list[str]:
    known = names()
    for name in only or ():
        if name not in known:
            raise UserError(f"unknown behaviour {name!r}: {strict.nearest(name, known)}")
    return known if only is None else list(only)


def _named(failed: Sequence[str]) -> str:
    return f", not {', '.join(failed)}" if failed else ""


def _finding(module: ModuleType, folder: Path, console: Console) -> Finding:
    if not hasattr(module, "EXPERIMENT"):
        return module.check()
    from experiments import compare

    settings = {"name": f"verify-{folder.name}", **module.EXPERIMENT}
    done = compare.run(out=folder, retry=("failed", "stale"), console=console, **settings)
    ends = {record["status"] for record in done.records} - {"done"}
    if ends:
        return Finding(f"a cell ended as {' or '.join(sorted(ends))}: see {done.report}", holds=False)
    return module.judge(accuracies(done.records))


def accuracies(records: Sequence[Mapping[str, Any]]) -> Accuracy:
    """Of the trained cells among these records, all of one task."""
    each: dict[str, dict[int, list[float]]] = {}
    for record in records:
        if record["kind"] == "train":
            lengths = each.setdefault(record["cell"]["label"], {})
            for length, scores in record["quality"]["test"].items():
                lengths.setdefault(int(length), []).append(scores["token_accuracy"])
    return {
        label: {length: statistics.fmean(values) for length, values in lengths.items()}
        for label, lengths in each.items()
    }


def _write(found: Mapping[str, Finding], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({name: asdict(finding) for name, finding in found.items()}, indent=1) + "\n")
