"""Reports of ledgers that are empty, unfinished, or hold records without some of their parts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_ledger import make_cell, make_cost, make_record, make_runs, markdown, row, section, write_ledger

from experiments import provenance, report
from experiments.errors import UserError
from experiments.report import study


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "sources", lambda arch, task: f"{arch} and {task}")


def test_an_empty_ledger_is_reported(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path, [])
    text = report.write(folder).with_suffix(".md").read_text()
    assert "No cell has been recorded yet" in text
    assert "`gqa` on `reverse` (seed 0, 1, 2)" in text
    assert (folder / "results.csv").read_text().strip() == "key"
    assert report.table(folder).row_count == 0


def test_the_terminals_table_needs_neither_torch_nor_matplotlib(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from experiments import report; report.table(pathlib.Path(sys.argv[1]));"
        "print([name for name in ('torch', 'lightning', 'matplotlib') if name in sys.modules])"
    )
    folder = write_ledger(tmp_path, make_runs("gqa", [0.9, 0.91]))
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


def test_an_unfinished_ledger_says_so(tmp_path: Path) -> None:
    text = markdown(write_ledger(tmp_path, [*make_runs("gqa", [0.9, 0.91]), *make_runs("mamba", [0.5, 0.52])]))
    assert "Not all of the experiment is recorded yet" in section(text, "Verdict")
    assert "11 training runs still to come" in text
    assert "`gqa` on `reverse` (seed 2)" in section(text, "Failures")


def test_a_folder_without_an_experiment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no experiment: expected the --out of"):
        report.write(tmp_path)
    with pytest.raises(UserError, match="holds no experiment"):
        report.table(tmp_path)


def test_what_is_no_record_is_named_and_changes_nothing(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path, make_runs("gqa", [0.9, 0.91, 0.92]))
    (folder / "cells" / "half.json").write_text('{"key": "half", "stat')
    text = markdown(folder)
    assert "No records, though among them: `half.json`." in text
    assert row(text, "gqa")[1].startswith("0.910")


PARTS = ["quality", "cost", "ran", "data", "environment", "matching", "log", "reason", "seconds", "cell", "sources"]
INNER = ["test", "validation", "curve", "train", "task_config", "arch_config", "contexts", "peak_bytes", "versions"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lost=st.sets(st.tuples(st.integers(0, 2), st.sampled_from(PARTS + INNER)), max_size=8),
    value=st.sampled_from([None, {}, "absent"]),
)
def test_records_may_lack_any_part(tmp_path: Path, lost: set[tuple[int, str]], value: Any) -> None:
    records = [*make_runs("gqa", [0.9, 0.91]), make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost())]
    for number, name in lost:
        record = records[number]
        holder = next((part for part in record.values() if isinstance(part, dict) and name in part), record)
        if value == "absent" and name != "cell":
            holder.pop(name, None)
        elif name in holder:
            holder[name] = {} if name == "cell" else value
    folder = write_ledger(tmp_path, records)
    assert "# made" in markdown(folder)
    assert report.results(study.read(folder)).count("\n") == 4
    assert report.table(folder).columns
