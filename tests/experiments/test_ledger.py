"""The ledger: whole records or none, one process at a time, one experiment per folder, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from made_ledger import make_cell, make_record

from experiments import config, ledger
from experiments.errors import UserError
from experiments.ledger import Ledger

SMOKE = config.load("smoke", {})
INTRUDER = """
import sys
from pathlib import Path
from experiments.errors import UserError
from experiments.ledger import Ledger
try:
    with Ledger(Path(sys.argv[1])).locked():
        print("in")
except UserError as error:
    print(error)
"""


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    book = Ledger(tmp_path / "run")
    with book.locked():
        book.claim(SMOKE)
    return book


def test_json_is_read_back_and_what_is_not_finite_is_null(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    ledger.write_json(path, {"a": [1.5, float("nan"), (float("inf"), "ü")], "b": None})
    assert json.loads(path.read_text()) == {"a": [1.5, None, [None, "ü"]], "b": None}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_record_and_no_trace(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.json"
    ledger.write_json(path, {"old": 1})

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full) if step == "fsync" else monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        ledger.write_json(path, {"new": 2})
    assert json.loads(path.read_text()) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_records_are_read_by_key(book: Ledger) -> None:
    records = [make_record(make_cell("gqa", "reverse", seed), quality={}) for seed in range(3)]
    for record in records:
        ledger.write_json(book.record_path(record["key"]), record)
    assert book.records() == {record["key"]: json.loads(json.dumps(record)) for record in records}
    assert not book.set_aside


@pytest.mark.parametrize(
    "content",
    [b"", b'{"key": "abc", "status": "do', b"[]", b'{"key": "other", "status": "done", "cell": {}}', b"\xff\xfe",
     b'{"key": "abc", "status": "excellent", "cell": {}}', b'{"key": "abc", "status": "done", "cell": 3}',
     b'{"key": "abc", "status": "failed", "cell": {}}',
     b'{"key": "abc", "kind": "train", "status": "done", "quality": null, "cell": {"arch": "gqa", "task": "copy"}}',
     b'{"key": "abc", "kind": "cost", "status": "done", "quality": {}, "cell": {"arch": "gqa", "task": "copy"}}'],
)  # fmt: skip
def test_a_corrupt_record_is_set_aside_whole(book: Ledger, content: bytes) -> None:
    for number in range(2):
        book.record_path("abc").write_bytes(content)
        assert book.records() == {}
        assert book.set_aside[number].read_bytes() == content
    assert len({*book.set_aside}) == 2
    assert all(path.name.startswith("abc.json.corrupt") for path in book.set_aside)


def test_what_the_system_does_not_let_us_read_is_no_corrupt_record(book: Ledger) -> None:
    book.record_path("abc").mkdir()  # refused to everyone, root included
    with pytest.raises(OSError, match=r"abc\.json"):
        book.records()
    assert book.record_path("abc").exists()
    assert ledger.read_record(book.record_path("absent")) is None


def test_records_of_other_cells_are_set_aside_whole(book: Ledger) -> None:
    kept, other = (make_record(make_cell("gqa", "reverse", seed), quality={}) for seed in range(2))
    for record in (kept, other):
        ledger.write_json(book.record_path(record["key"]), record)
    moved = book.supersede({kept["key"]})
    assert [path.name for path in moved] == [f"{other['key']}.json.superseded"]
    assert json.loads(moved[0].read_text())["key"] == other["key"]
    assert set(book.records()) == {kept["key"]}


def test_a_second_process_is_refused_by_name(book: Ledger) -> None:
    command = [sys.executable, "-c", INTRUDER, str(book.folder)]
    with book.locked():
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert f"is in use by process {os.getpid()}" in done.stdout
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "in\n"


def test_a_folder_of_a_different_experiment_is_refused_and_left_alone(book: Ledger) -> None:
    before = (book.folder / "experiment.yaml").read_text()
    with pytest.raises(UserError, match=r"different experiment \(train\.steps is 60 there and 61 here\)"):
        book.claim(config.load("smoke", {"train": {"steps": 61}}))
    with pytest.raises(UserError, match=r"arch\.gqa is not set there"):
        book.claim(config.load("smoke", {"arch": {"gqa": {"n_kv_heads": 1}}}))
    assert (book.folder / "experiment.yaml").read_text() == before


def test_what_only_adds_cells_continues_the_experiment(book: Ledger) -> None:
    book.claim(config.load("smoke", {"seeds": 3}))
    with pytest.raises(UserError, match=r"different experiment \(seeds is 3 there and 1 here\)"):
        book.claim(SMOKE)
    book.claim(config.load("smoke", {"seeds": 3, "archs": [*SMOKE.archs, "gqa:n_kv_heads=1"]}))
    with pytest.raises(UserError, match=r"different experiment \(archs is "):
        book.claim(config.load("smoke", {"seeds": 3}))
    assert config.load(str(book.folder / "experiment.yaml"), {}).seeds == 3


def test_limits_do_not_make_a_different_experiment(book: Ledger) -> None:
    book.claim(config.load("smoke", {"timeout": 5, "memory_limit": "3GiB", "keep_checkpoints": True}))
    assert config.load(str(book.folder / "experiment.yaml"), {}).timeout == 5


def test_a_broken_experiment_file_is_named(book: Ledger) -> None:
    (book.folder / "experiment.yaml").write_text("seeds: [")
    with pytest.raises(UserError, match=r"experiment\.yaml is not YAML"):
        book.claim(SMOKE)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds thesis\.tex but no experiment"), Ledger(tmp_path).locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_run_that_was_killed_while_it_claimed_its_folder_may_begin_again(tmp_path: Path) -> None:
    (tmp_path / ".experiment.yaml.4711.new").write_text("na")
    with Ledger(tmp_path).locked():
        pass


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(UserError, match="is a file"), Ledger(tmp_path / "x").locked():
        pass


def test_a_status_is_told_only_where_it_can_be_read(book: Ledger) -> None:
    assert book.status("k") == {}
    for text in ('{"step": 3', "[]", ""):
        book.status_path("k").write_text(text)
        assert book.status("k") == {}
    book.status_path("k").write_text('{"step": 3}')
    assert book.status("k") == {"step": 3}


def test_last_words_are_the_last_line_that_says_something(book: Ledger) -> None:
    assert book.last_words("k") == ""
    book.log_path("k").write_bytes(b"first\nlast \xff\n\n  \n")
    assert book.last_words("k").startswith("last")


def test_stale_is_what_other_sources_computed() -> None:
    record = make_record(make_cell("gqa", "reverse"))
    assert not ledger.is_stale(record)
    assert ledger.is_stale({**record, "sources": "0123"})
    assert ledger.is_stale({**record, "sources": None})
    assert not ledger.is_stale({**record, "sources": None, "status": "failed"})
    assert ledger.is_stale({**record, "cell": {**record["cell"], "arch": "/nowhere/gone.py"}})
