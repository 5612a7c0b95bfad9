"""However a cell ends, its process leaves one record that says so."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
from pathlib import Path
from typing import Any

import pytest
from toy_cell import cell

from experiments import provenance, worker
from experiments.cell import Cell

CONTEXT = multiprocessing.get_context("forkserver")
BROKEN = """
from dataclasses import dataclass
from archs.contract import Backbone

@dataclass(frozen=True, kw_only=True)
class Config:
    d_model: int = 8

class Broken(Backbone):
    def __init__(self, config, vocab_size):
        raise RuntimeError("first line\\nsecond line")
    def encode(self, source, room=0): ...
    def advance(self, state, target): ...
"""


def end(toy: Cell, folder: Path, memory_limit: int | None = None, **options: Any) -> dict[str, Any]:
    """The record that a child process leaves."""
    CONTEXT.set_forkserver_preload(["experiments.preload"])
    process = CONTEXT.Process(target=worker.work, args=(toy.to_json(), str(folder), 1, memory_limit), kwargs=options)
    process.start()
    process.join(120)
    assert process.exitcode == 0, (folder / "cells" / f"{toy.key}.log").read_text()
    return json.loads((folder / "cells" / f"{toy.key}.json").read_text())


def files(toy: Cell, folder: Path) -> set[str]:
    return {path.name.removeprefix(toy.key) for path in (folder / "cells").iterdir()}


def test_a_cell_that_ends_well(tmp_path: Path) -> None:
    toy = cell(train={"steps": 2, "val_every": 2})
    record = end(toy, tmp_path)
    assert (record["status"], record["reason"], record["version"]) == ("done", None, 1)
    assert (record["key"], record["kind"], record["cell"]) == (toy.key, "train", toy.to_json())
    assert record["quality"]["steps"] == 2
    assert record["ran"]["loss"] == "cross_entropy"
    assert record["data"]["task"] == "reverse"
    assert re.fullmatch("[0-9a-f]{16}", record["data"]["fingerprint"])
    assert record["sources"] == provenance.sources(toy.arch, toy.task)
    machine = record["environment"]
    assert (machine["device"], machine["threads"], machine["precision"]) == ("cpu", 1, "32")
    assert {"python", "torch", "lightning"} <= machine["versions"].keys()
    assert record["started"] <= record["ended"]
    assert record["seconds"] > 0
    assert (tmp_path / record["log"]).is_file()
    assert files(toy, tmp_path) == {".json", ".log"}


def test_a_checkpoint_can_be_kept(tmp_path: Path) -> None:
    toy = cell(train={"steps": 1})
    end(toy, tmp_path, keep_checkpoint=True)
    assert ".ckpt" in files(toy, tmp_path)


def test_a_cost_cell(tmp_path: Path) -> None:
    record = end(cell(kind="cost"), tmp_path)
    assert (record["status"], record["kind"]) == ("done", "cost")
    assert record["cost"]["peak_bytes"] > 0
    assert "quality" not in record


def test_running_out_of_memory_is_a_result(tmp_path: Path) -> None:
    """About 1.3 GB of weights, gradients and moments, under a limit that leaves torch itself enough."""
    toy = cell(arch_config={"d_model": 3700}, train={"steps": 2})
    record = end(toy, tmp_path, memory_limit=700 * 2**20)
    assert record["status"] == "oom", record["reason"]
    assert record["reason"].startswith("out of memory")
    assert record["environment"]["device"] == "cpu"


def test_divergence_is_a_result(tmp_path: Path) -> None:
    record = end(cell(lr=1e30, train={"clip": 0.0, "warmup": 0.0, "steps": 20}), tmp_path)
    assert record["status"] == "nan", record["reason"]
    assert "step" in record["reason"]
    assert isinstance(record["quality"]["curve"], list)


def test_an_exception_is_a_failed_cell_with_its_traceback_in_the_log(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    record = end(cell(arch=str(tmp_path / "broken.py"), arch_config={}), tmp_path)
    assert (record["status"], record["reason"]) == ("failed", "RuntimeError: first line")
    assert "second line" in (tmp_path / record["log"]).read_text()


def test_a_users_mistake_is_a_failed_cell_with_one_sentence(tmp_path: Path) -> None:
    record = end(cell(task="text", task_config={"path": str(tmp_path / "absent")}), tmp_path)
    assert record["status"] == "failed"
    assert "absent" in record["reason"]
    assert "\n" not in record["reason"]


def test_a_process_says_everything_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = CONTEXT.Process(target=speak, args=(log,))
    process.start()
    process.join(60)
    assert log.read_text().split() == ["from", "python", "from", "below"]


def speak(log: Path) -> None:
    worker.isolate(log)
    print("from python", flush=True)
    os.write(2, b"from below\n")


def test_a_limit_of_the_users_own_stays_in_force(tmp_path: Path) -> None:
    """`ulimit -d` sets a hard limit, which no process may raise."""
    process = CONTEXT.Process(target=limits_within, args=(2**33, tmp_path / "limits"))
    process.start()
    process.join(60)
    assert json.loads((tmp_path / "limits").read_text()) == [2**30, 2**33]


def limits_within(hard: int, told: Path) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))
    found = []
    for limit in (2**30, 2**34):
        with worker.limited(limit):
            found.append(resource.getrlimit(resource.RLIMIT_DATA)[0])
    told.write_text(json.dumps(found))


def test_progress_is_written_at_most_twice_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.0, 0.2, 0.4, 0.6, 0.8])
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    report = worker.reporter(tmp_path / "status")
    written = []
    for step in range(5):
        report({"phase": "train", "step": step, "steps": 5, "loss": 1.0})
        written.append(json.loads((tmp_path / "status").read_text())["step"])
    assert written == [0, 0, 0, 3, 3]
    assert json.loads((tmp_path / "status").read_text())["seconds"] == 0.6
