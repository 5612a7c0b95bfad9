"""The scheduler: whatever a cell's process does, it ends in one record, and nothing outlives the parent."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_workers
import pytest

from experiments import config, ledger, scheduler
from experiments.cell import Cell
from experiments.ledger import Ledger
from experiments.scheduler import Limits, Scheduler

HERE = Path(__file__).parent


class Notes:
    """A board that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.told: list[dict[str, Any]] = []

    def started(self, cell: Cell) -> None:
        self.events.append(("started", cell.label))

    def progress(self, status: dict[str, dict[str, Any]]) -> None:
        self.told += [told for told in status.values() if told]

    def ended(self, cell: Cell, record: dict[str, Any]) -> None:
        self.events.append((record["status"], cell.label))


@pytest.fixture(autouse=True)
def bare_children(monkeypatch: pytest.MonkeyPatch) -> None:
    """These children need no torch."""
    monkeypatch.setattr(scheduler, "_PRELOADED", [])


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Ledger]:
    book = Ledger(tmp_path / "run")
    with book.locked():
        book.claim(config.load("smoke", {}))
        yield book


def cell(label: str, seed: int = 0) -> Cell:
    return Cell(
        kind="train", label=label, arch="gqa", arch_config={}, task_label="reverse", task="reverse", task_config={},
        seed=seed,
    )  # fmt: skip


def run(book: Ledger, *labels: str, jobs: int = 2, timeout: float = 60, **limits: Any) -> dict[str, dict[str, Any]]:
    """Run one cell per label; the records by label."""
    notes = Notes()
    options = Limits(jobs=jobs, threads=1, timeout=timeout, **limits)
    Scheduler(book, options, fake_workers.act, notes, matching=lambda cell: {"of": cell.label}).run(map(cell, labels))
    assert not list(book.cells.glob("*.status"))
    return {record["cell"]["label"]: record for record in book.records().values()}


def test_cells_that_end_well(book: Ledger) -> None:
    records = run(book, "done 1", "done 2", "done 3", memory=2**33)
    assert [records[f"done {number}"]["status"] for number in (1, 2, 3)] == ["done"] * 3
    assert records["done 1"]["matching"] == {"of": "done 1"}
    assert records["done 1"]["asked"] == {"threads": 1, "memory_limit": 2**33, "keep_checkpoint": False}
    assert len({record["environment"]["pid"] for record in records.values()} | {os.getpid()}) == 4


@pytest.mark.parametrize(
    ("label", "status", "words"),
    [
        ("killed", "oom", "killed by the system"),
        ("crash", "failed", "SIGSEGV: its last words"),
        ("abort", "oom", "SIGABRT: what():  std::bad_alloc"),
        ("raise", "failed", "ended with status 1 and no record"),
        ("silent", "failed", "ended with status 0 and no record: its last words"),
        ("torn", "failed", "no record"),
        ("allocate", "failed", "no record"),
    ],
)
def test_a_cell_without_a_record_of_its_own_gets_one(
    book: Ledger, label: str, status: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    records = run(book, label, "done")
    assert (records[label]["status"], records["done"]["status"]) == (status, "done")
    record = records[label]
    assert words in record["reason"]
    assert "\n" not in record["reason"]
    assert record.keys() >= {"version", "key", "kind", "cell", "environment", "sources", "log", "started", "seconds"}
    assert (record["matching"], record["key"]) == ({"of": label}, cell(label).key)


def test_a_cell_that_takes_too_long_is_killed_though_deaf(book: Ledger) -> None:
    begun = time.monotonic()
    records = run(book, "sleep", "done", timeout=4)
    assert time.monotonic() - begun < 30
    assert records["sleep"]["status"] == "timeout"
    assert records["sleep"]["reason"].startswith("stopped after 4 s at step 7 of 9")
    assert records["done"]["status"] == "done"
    assert not alive(int((book.cells / f"{cell('sleep').key}.pid").read_text()))


def test_ctrl_c_is_the_parents_affair(book: Ledger) -> None:
    assert run(book, "interrupted")["interrupted"]["status"] == "done"


def spans(book: Ledger) -> list[list[float]]:
    return sorted(json.loads(path.read_text()) for path in book.cells.glob("*.span"))


def test_so_many_at_a_time_and_no_more(book: Ledger) -> None:
    run(book, *(f"nap {number}" for number in range(4)), jobs=2)
    moments = [begun for begun, _ in spans(book)]
    at_once = [sum(begun <= moment < ended for begun, ended in spans(book)) for moment in moments]
    assert max(at_once) == 2


def test_one_at_a_time(book: Ledger) -> None:
    run(book, "nap 1", "nap 2", jobs=1)
    (_, ended), (begun, _) = spans(book)
    assert ended <= begun


def test_each_job_has_a_gpu_of_its_own(book: Ledger) -> None:
    records = run(book, "nap 1", "nap 2", "nap 3", gpus=("4", "6"))
    assert {record["environment"]["gpu"] for record in records.values()} == {"4", "6"}


def test_the_board_is_told_everything(book: Ledger) -> None:
    notes = Notes()
    limits = Limits(jobs=1, threads=1, timeout=4)
    Scheduler(book, limits, fake_workers.act, notes).run([cell("sleep"), cell("done")])
    assert notes.events == [("started", "sleep"), ("timeout", "sleep"), ("started", "done"), ("done", "done")]
    assert {"phase": "train", "step": 7, "steps": 9, "loss": 0.5} in notes.told


def test_a_retried_cell_keeps_its_old_record_until_there_is_a_new_one(book: Ledger) -> None:
    path = book.record_path(cell("silent").key)
    ledger.write_json(path, fake_workers.record(cell("silent"), mark="old"))
    assert "mark" not in run(book, "silent")["silent"]
    ledger.write_json(book.record_path(cell("done").key), fake_workers.record(cell("done"), mark="old"))
    assert "mark" not in run(book, "done")["done"]


def test_a_full_disk_ends_the_run_and_leaves_no_process(book: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    sleeper = book.cells / f"{cell('sleep').key}.pid"

    def full(path: Path, data: Any) -> None:
        wait_until(sleeper.with_suffix(".status").exists)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ledger, "write_json", full)
    with pytest.raises(OSError, match="No space left"):
        run(book, "sleep", "killed")
    assert not alive(int(sleeper.read_text()))


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)


PARENT = """
import sys
from pathlib import Path
import fake_workers
from experiments import scheduler
from experiments.ledger import Ledger
from test_scheduler import Notes, cell
scheduler._PRELOADED = []
Path(sys.argv[1], "imported").open("a").write("x")
book = Ledger(Path(sys.argv[1]))
try:
    with book.locked():
        cells = [cell(label) for label in ("done", "sleep 1", "sleep 2")]
        limits = scheduler.Limits(jobs=2, threads=1, timeout=600)
        scheduler.Scheduler(book, limits, fake_workers.act, Notes()).run(cells)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Ledger, list[int]]]:
    """A script without `if __name__ == '__main__'` that runs two endless cells; the script, ledger and children."""
    book = Ledger(tmp_path / "run")
    book.cells.mkdir(parents=True)
    (book.folder / "experiment.yaml").write_text("name: x\n")
    script = tmp_path / "script.py"
    script.write_text(PARENT)
    with subprocess.Popen(
        [sys.executable, str(script), str(book.folder)],
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parents[1]}"},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        paths = [book.cells / f"{cell(label).key}.status" for label in ("sleep 1", "sleep 2")]
        try:
            wait_until(lambda: all(path.exists() for path in paths))
            yield process, book, [int(path.with_suffix(".pid").read_text()) for path in paths]
        finally:
            process.kill()


def test_a_killed_parent_leaves_no_orphan(parent: tuple[subprocess.Popen[str], Ledger, list[int]]) -> None:
    process, book, children = parent
    assert all(map(alive, children))
    process.kill()
    process.wait(30)
    wait_until(lambda: not any(map(alive, children)), seconds=20)
    assert [record["cell"]["label"] for record in book.records().values()] == ["done"]
    with book.locked():
        pass


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_stops_the_children_and_records_nothing_of_them(
    parent: tuple[subprocess.Popen[str], Ledger, list[int]], times: int
) -> None:
    process, book, children = parent
    for _ in range(times):
        process.send_signal(signal.SIGINT)
    _, complaint = process.communicate(timeout=30)
    assert (process.returncode, complaint) == (130, "")
    assert not any(map(alive, children))
    assert [record["cell"]["label"] for record in book.records().values()] == ["done"]
    assert not list(book.cells.glob("*.status"))
    assert (book.folder / "imported").read_text() == "x"


def test_ctrl_c_while_the_fork_server_loads_ends_the_run_quietly(tmp_path: Path) -> None:
    """A terminal sends Ctrl-C to the whole group, and the fork server spends seconds on importing torch."""
    book = Ledger(tmp_path / "run")
    book.cells.mkdir(parents=True)
    (book.folder / "experiment.yaml").write_text("name: x\n")
    mark = tmp_path / "loading"
    (tmp_path / "slow_import.py").write_text(
        f"import pathlib, time\npathlib.Path({str(mark)!r}).touch()\ntime.sleep(2)\n"
    )
    (tmp_path / "script.py").write_text(PARENT.replace("_PRELOADED = []", "_PRELOADED = ['slow_import']"))
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(book.folder)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (HERE, HERE.parents[1], tmp_path)))},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until(mark.exists)
        os.killpg(process.pid, signal.SIGINT)
        _, complaint = process.communicate(timeout=60)
    assert (process.returncode, complaint) == (130, "")


def test_ctrl_c_however_often_only_sets_the_event() -> None:
    with scheduler.deferred_interrupt() as interrupted:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        assert interrupted.is_set()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
