"""A comparison from end to end: what runs, what does not run again, and how it ends."""

from __future__ import annotations

import errno
import functools
import importlib
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fake_workers
import pytest
from rich.console import Console
from rich.table import Table

import experiments
from experiments import compare, config, ledger, report, resources, scheduler, tensorboard
from experiments.errors import UserError
from experiments.ledger import Ledger

SMALL = {
    "name": "small",
    "archs": ["gqa"],
    "tasks": ["reverse"],
    "seeds": 2,
    "budget": {"by": "none"},
    "arch": {"gqa": {"d_model": 16}},
    "task": {"reverse": {"train_lengths": [2, 6], "test_lengths": [4, 6, 10], "symbols": 8}},
    "train": {"accelerator": "cpu"},
}


class Run:
    """`compare` into one folder with fake cells and a report that is only counted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.console = Console(width=160, record=True, file=io.StringIO())
        self.started: list[str] = []
        self.reports = 0

    def __call__(self, work: Any = fake_workers.finish, retry: tuple[str, ...] = (), **overrides: Any) -> int:
        self.started.clear()
        experiment = config.load(None, config.merge(SMALL, overrides))
        return compare.compare(experiment, self.folder, 2, retry=retry, console=self.console, work=work)

    @property
    def said(self) -> str:
        """All that was printed since it was last asked."""
        return self.console.export_text()

    @property
    def records(self) -> dict[str, dict[str, Any]]:
        return Ledger(self.folder).records()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    made = Run(tmp_path / "runs" / "small")
    start = scheduler.Scheduler._start

    def noted(self: scheduler.Scheduler, cell: Any) -> None:
        made.started.append(cell.key)
        start(self, cell)

    def write(folder: Path) -> Path:
        made.reports += 1
        return folder / "report.md"

    monkeypatch.setattr(scheduler, "_PRELOADED", [])
    monkeypatch.setattr(scheduler.Scheduler, "_start", noted)
    monkeypatch.setattr(report, "write", write)
    monkeypatch.setattr(report, "table", lambda folder: Table("the table"))
    monkeypatch.setattr(tensorboard, "write_overview", lambda folder: None)
    return made


def test_every_cell_runs_once_and_a_second_run_only_reports(run: Run) -> None:
    assert run() == 0
    assert len(run.started) == 3
    assert sorted((record["kind"], record["cell"]["seed"]) for record in run.records.values()) == [
        ("cost", 0), ("train", 0), ("train", 1),
    ]  # fmt: skip
    said = run.said
    assert all(words in said for words in ("the table", "cells    3 done", "report.html", "archlab tensorboard"))
    assert "3/3 done    gqa · reverse · cost" in said
    before = {path: path.stat().st_mtime_ns for path in run.folder.glob("cells/*.json")}
    assert run() == 0
    assert (run.started, run.reports) == ([], 2)
    assert {path: path.stat().st_mtime_ns for path in run.folder.glob("cells/*.json")} == before


def test_more_seeds_and_architectures_join_those_that_ran(run: Run) -> None:
    assert run() == 0
    before = set(run.records)
    assert run(seeds=3, archs=["transformer", "gqa"]) == 0
    assert len(run.started) == 5
    assert before < set(run.records)


def test_training_cells_share_the_cores_and_cost_cells_have_them_all(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.resources.cores", lambda: 6)
    run(memory_limit="1GiB", keep_checkpoints=True)
    asked = {record["kind"]: record["asked"] for record in run.records.values()}
    assert asked["train"] == {"threads": 3, "memory_limit": 2**30, "keep_checkpoint": True}
    assert asked["cost"]["threads"] == 6


def machine(monkeypatch: pytest.MonkeyPatch, gpus: list[str], jobs: int | None = None, **train: Any) -> compare.Machine:
    """What the cells of an experiment get on a machine of 8 cores and 10 GiB with these GPUs."""
    monkeypatch.setattr(resources, "cores", lambda: 8)
    monkeypatch.setattr(resources, "free_memory", lambda: 10 * 2**30)
    monkeypatch.setattr(resources, "visible_gpus", lambda accelerator: gpus)
    return compare.Machine.of(config.load(None, {"train": train}), jobs)


def test_cells_of_several_processes_share_memory_and_cores_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = machine(monkeypatch, [], devices=2)
    assert shared.jobs == 2
    limits = shared.limits(2, 60)
    assert (limits.threads, limits.memory, limits.gpus) == (4, 2 * 2**30, ())


def test_cells_of_several_gpus_have_them_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = machine(monkeypatch, ["0", "1", "2", "3"], devices=2)
    limits = shared.limits(shared.jobs, 60)
    assert (limits.jobs, limits.gpus) == (2, ("0,1", "2,3"))
    assert limits.memory is None, "CUDA reserves more address space than it uses"


def test_a_cell_per_gpu_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine(monkeypatch, ["0", "1", "2"]).jobs == 3
    assert machine(monkeypatch, ["0"], jobs=2).jobs == 2
    assert machine(monkeypatch, []).jobs == 5


def test_how_the_budget_is_met_is_in_record_and_folder(run: Run) -> None:
    run(budget={"by": "parameters", "value": 20_000}, arch={"gqa": {"d_model": 32}})
    (row,) = json.loads((run.folder / "matching.json").read_text())
    assert all(record["matching"] == row for record in run.records.values())
    assert (row["label"], row["task_label"], row["by"], row["budget"]) == ("gqa", "reverse", "parameters", 20_000)
    assert abs(row["deviation"]) < 0.05
    assert "+0.6%" in run.said


def test_a_failed_cell_is_status_1_and_runs_again_only_when_asked(run: Run) -> None:
    assert run(fake_workers.fail_once) == 1
    assert "3 failed: --retry failed runs them again" in run.said
    assert run(fake_workers.fail_once) == 1
    assert run.started == []
    assert run(fake_workers.fail_once, retry=("failed",)) == 0
    assert len(run.started) == 3
    assert {record["status"] for record in run.records.values()} == {"done"}


def test_a_cell_out_of_memory_is_a_result(run: Run) -> None:
    archs = [{"label": "killed", "arch": "gqa"}, {"label": "done", "arch": "gqa"}]
    assert run(fake_workers.act, archs=archs, seeds=1) == 0
    found = {(record["cell"]["label"], record["status"]) for record in run.records.values()}
    assert found == {("killed", "oom"), ("done", "done")}
    assert run(fake_workers.act, retry=("oom",), archs=archs, seeds=1) == 0
    assert len(run.started) == 2


def test_stale_records_are_told_and_run_again_only_when_asked(run: Run) -> None:
    run(seeds=1)
    for key, record in run.records.items():
        ledger.write_json(Ledger(run.folder).record_path(key), {**record, "sources": "of old"})
    assert "--retry stale" not in run.said
    assert run(seeds=1) == 0
    assert run.started == []
    assert "2 stale: --retry stale runs them again" in run.said
    run(retry=("stale",), seeds=1)
    assert len(run.started) == 2


def test_a_corrupt_record_is_named_and_runs_again(run: Run) -> None:
    run()
    path = next(run.folder.glob("cells/*.json"))
    path.write_text("{")
    assert run() == 0
    assert run.started == [path.stem]
    assert f"{path.name}.corrupt" in run.said
    assert path.with_name(f"{path.name}.corrupt").read_text() == "{"


def test_an_interrupted_run_continues_with_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    look = scheduler.Scheduler._look

    def interrupt(self: scheduler.Scheduler) -> None:
        look(self)
        if list(run.folder.glob("cells/*.json")):
            raise KeyboardInterrupt

    monkeypatch.setattr(scheduler.Scheduler, "_look", interrupt)
    assert run(seeds=4) == 130
    recorded = set(run.records)
    assert recorded
    assert f"interrupted with {len(recorded)} cells recorded; the same command continues" in run.said
    assert run.reports == 0
    monkeypatch.setattr(scheduler.Scheduler, "_look", look)
    assert run(seeds=4) == 0
    assert not recorded & set(run.started)
    assert len(run.records) == 5


def test_records_of_a_configuration_that_is_no_more_are_set_aside(run: Run) -> None:
    run(seeds=1)
    key, record = next(iter(run.records.items()))
    ledger.write_json(run.folder / "cells" / "0123.json", {**record, "key": "0123"})
    run(seeds=1)
    assert "1 records of an earlier version" in run.said
    assert (run.folder / "cells" / "0123.json.superseded").exists()
    assert key in run.records


def test_the_rate_is_selected_then_the_other_seeds_run_at_it(run: Run) -> None:
    overrides = {"lr_grid": [1e-3, 1e-2, 1e-1, 1.0], "seeds": 3}
    assert run(fake_workers.prefer, **overrides) == 0
    trains = [record["cell"] for record in run.records.values() if record["kind"] == "train"]
    assert sorted((cell["seed"], cell["lr"]) for cell in trains) == [
        (0, 0.001), (0, 0.01), (0, 0.1), (0, 1.0), (1, 0.01), (2, 0.01),
    ]  # fmt: skip
    assert run(fake_workers.prefer, **overrides) == 0
    assert run.started == []


def test_a_dry_run_shows_everything_and_leaves_nothing(run: Run) -> None:
    experiment = config.load(None, config.merge(SMALL, {"train": {"steps": 100_000, "batch_size": 2}}))
    assert compare.compare(experiment, run.folder, 2, dry_run=True, console=run.console) == 0
    said = run.said
    assert "2 trainings and 1 measurements of cost, 0 of them recorded already" in said
    assert "training alone takes about 0:" in said
    assert "0:00:00" not in said
    assert not run.folder.exists()


def refused(run: Callable[..., int], *arguments: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_in_use_or_of_something_else_is_refused(run: Run, tmp_path: Path) -> None:
    run()
    before = {path: path.read_bytes() for path in run.folder.rglob("*.*") if path.is_file()}
    assert "seeds is 2 there and 1 here" in refused(run, seeds=1)
    with Ledger(run.folder).locked():
        assert "is in use by process" in refused(run)
    assert {path: path.read_bytes() for path in before} == before
    run.folder = tmp_path / "file"
    run.folder.write_text("")
    assert "is a file" in refused(run)


def test_a_full_disk_is_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(ledger, "write_json", full)
    assert "the disk is full: free some space" in refused(run)
    assert run.reports == 0


def test_a_folder_that_cannot_be_written_is_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run.folder = tmp_path / "file" / "below"
    assert "cannot work in" in refused(run)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"retry": ("faild",)}, "did you mean 'failed'"),
        ({"memory_limit": "plenty"}, "memory_limit must be auto, none, or a size such as 4GiB"),
        ({"archs": ["gqq"]}, "did you mean 'gqa'"),
    ],
)
def test_a_mistake_is_found_before_anything_is_written(run: Run, options: dict[str, Any], words: str) -> None:
    assert words in refused(run, **options)
    assert not run.folder.exists()


def test_the_python_call(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "compare", functools.partial(compare.compare, work=fake_workers.finish))
    given = {key: value for key, value in SMALL.items() if key not in ("archs", "seeds")}
    found = experiments.compare(archs=["gqa"], seeds=1, out=run.folder, config=None, console=run.console, **given)
    assert (found.status, found.folder, found.report) == (0, run.folder, run.folder / "report.html")
    assert sorted(record["kind"] for record in found.records) == ["cost", "train"]


def test_the_call_and_the_module_share_a_name() -> None:
    assert importlib.import_module("experiments.compare") is experiments.compare
    assert callable(experiments.compare)
    assert not hasattr(experiments, "compair")
    code = "import experiments, sys; experiments.compare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
