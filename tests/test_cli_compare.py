"""`archlab compare` as a whole: what it refuses before anything runs, and a run from start to report."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Archlab

import archs
from experiments import cli, ledger

pytestmark = pytest.mark.timeout(900)  # a whole run takes a minute, but several on a busy machine

TINY = """
    --archs gqa --tasks reverse --budget.by none --arch.gqa.d_model 16 --arch.gqa.d_ff 16 --arch.gqa.n_layers 1
    --arch.gqa.n_heads 2 --arch.gqa.n_kv_heads 1 --task.reverse.train_lengths 3,4 --task.reverse.test_lengths 4
    --train.batch_size 8 --train.val_examples 8 --train.test_examples 8 --train.val_every 50 --cost.contexts 16,32
    --cost.batch_size 2 --cost.seconds 0.02 --jobs 2 --train.stop_when_solved false
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The current folder, with files that a user might have got wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "short.txt").write_text("a b c " * 50)
    (tmp_path / "typo.yaml").write_text("name: mine\ntrian: {steps: 3}\n")
    (tmp_path / "broken.yaml").write_text("name: [mine\n")
    (tmp_path / "none.py").write_text('"""Neither an architecture nor a task."""\n')
    return tmp_path


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--archs gpa", "unknown architecture 'gpa': expected one of gqa, mamba, seq2seq, transformer"),
        ("--archs ./missing.py", "no architecture file at "),
        ("--archs ./none.py", "is no architecture: expected `class Config` and exactly one Backbone"),
        ("--archs gqa:n_kv_head=1", "unknown key 'n_kv_head' in gqa: did you mean 'n_kv_heads'?"),
        ("--archs gqa,gqa", "archs 'gqa' and 'gqa' would share one name"),
        ("--arch.gqa.n_kv_head 1", "unknown key 'n_kv_head' in gqa: did you mean 'n_kv_heads'?"),
        ("--arch.gpa.n_kv_heads 1", "unknown key 'gpa' in arch: did you mean 'gqa'?"),
        ("--archs gqa --arch.gqa.n_heads 4 --arch.gqa.n_kv_heads 3", "n_heads=4 must be a multiple of n_kv_heads=3"),
        ("--archs seq2seq:attention=both", "must be one of none, bahdanau, luong, got 'both'"),
        ("--tasks revers", "unknown task 'revers'"),
        ("--tasks ./none.py", "is no task: expected `class Config(Task)`"),
        ("--task.reverse.symbls 4", "unknown key 'symbls' in task.reverse: did you mean 'symbols'?"),
        ("--task.reverse.symbols 0", "symbols must be at least 2"),
        ("--tasks recall --task.recall.keys 2", "the vocabulary is too small"),
        ("--tasks text --task.text.path missing.txt", "missing.txt: expected an existing file or folder"),
        ("--tasks text --task.text.path empty.txt", "empty.txt holds no bytes to model"),
        ("--tasks text --task.text.path short.txt", "the data is too short"),
        ("--per_task.reverse.stepps 4", "unknown key 'stepps' in per_task.reverse: did you mean 'steps'?"),
        ("--config typo.yaml", "unknown key 'trian': did you mean 'train'?"),
        ("--config broken.yaml", "the configuration broken.yaml is not YAML"),
        ("--config qiuck", "no preset or file 'qiuck': did you mean 'quick'?"),
        ("--seeds 0", "seeds must be at least 1, got 0"),
        ("--lr_grid 1e-3,3e-3", "lr_grid must hold at least 4 different rates"),
        ("--archs gqa --budget.value 10", "cannot meet the budget of 10 parameters"),
        ("--memory_limit lots", "memory_limit must be auto, none, or a size such as 4GiB"),
    ],
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    words: str, sentence: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(here.rglob("*"))
    assert cli.main(["compare", "--archs", "gqa", "--tasks", "reverse", *words.split()]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("archlab: ")
    assert sentence in printed
    assert printed.count("\n") == 1
    assert [path for path in sorted(here.rglob("*")) if "__pycache__" not in path.parts] == before


@pytest.fixture(scope="module")
def smoke(archlab: Archlab, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """What a first run of the smoke preset printed, and its folder."""
    folder = tmp_path_factory.mktemp("runs") / "smoke"
    return archlab("compare", "--config", "smoke", "--out", folder, timeout=600), folder


def records(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (folder / "cells").glob("*.json")}


Smoke = tuple[subprocess.CompletedProcess[str], Path]


def test_a_run_ends_with_a_table_the_report_and_what_to_type_next(smoke: Smoke) -> None:
    done, folder = smoke
    assert (done.returncode, done.stderr) == (0, "")
    assert str(folder / "report.html") in done.stdout
    assert f"archlab tensorboard {folder}" in done.stdout
    for arch in archs.names():
        assert done.stdout.count(arch) >= 3  # as a cell that trained, one that was measured, and a row of the table


def test_a_run_leaves_records_curves_and_a_report(smoke: Smoke) -> None:
    _, folder = smoke
    found = [json.loads(text) for text in records(folder).values()]
    assert sorted((record["cell"]["arch"], record["kind"]) for record in found) == [
        (arch, kind) for arch in archs.names() for kind in ("cost", "train")
    ]
    for record in found:
        assert (record["status"], record["reason"]) == ("done", None)
        assert record["data"]["fingerprint"]
        assert record["matching"]["solved"]
        assert not ledger.is_stale(record)
        assert record["ran"]["loss"]
        assert record["environment"]["versions"]["torch"]
        assert (folder / record["log"]).is_file()
    assert {"selective_scan", "causal_conv1d"} <= set(
        next(record for record in found if record["cell"]["arch"] == "mamba")["ran"]["kernels"]
    )
    assert len(list((folder / "tb").glob("*/reverse/seed0-*"))) == len(archs.names())
    assert (folder / "tb" / "_experiment").is_dir()
    assert (folder / "experiment.yaml").is_file()
    assert not list((folder / "cells").glob("*.ckpt"))
    with (folder / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) >= len(archs.names())
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == len(list((folder / "figures").glob("*.svg")))
    assert not re.search(r"""(src|href)=["']?(https?:|//|figures)""", page), "it loads something from elsewhere"
    assert list((folder / "figures").glob("*.png"))
    assert list((folder / "figures").glob("*.svg"))


def test_a_second_run_only_rebuilds_the_report(smoke: Smoke, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = smoke
    before = records(folder)
    (folder / "report.html").unlink()
    assert cli.main(["compare", "--config", "smoke", "--out", str(folder)]) == 0
    assert capsys.readouterr().err == ""
    assert records(folder) == before
    assert (folder / "report.html").is_file()


def test_report_writes_the_same_again_from_the_records(smoke: Smoke, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = smoke
    before = (folder / "report.md").read_text()
    (folder / "report.md").unlink()
    assert cli.main(["report", str(folder)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert (folder / "report.md").read_text() == before
    assert all(arch in printed.out for arch in archs.names())


def test_a_folder_of_another_experiment_is_left_alone(smoke: Smoke, capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = smoke
    before = records(folder), (folder / "experiment.yaml").read_text(), (folder / "report.md").read_text()
    assert cli.main(["compare", "--config", "smoke", "--train.steps", "61", "--out", str(folder)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("archlab: ")
    assert str(folder) in printed
    assert printed.count("\n") == 1
    assert (records(folder), (folder / "experiment.yaml").read_text(), (folder / "report.md").read_text()) == before


def test_a_dry_run_shows_the_cells_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["compare", "--config", "smoke", "--dry-run", "--out", "x"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert all(arch in printed.out for arch in archs.names())
    assert not list(tmp_path.iterdir())


def wait_until(happened: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_for(happened: Callable[[], object], started: subprocess.Popen[str]) -> None:
    def happened_while_it_ran() -> object:
        assert started.poll() is None, started.communicate()
        return happened()

    wait_until(happened_while_it_ran)


def members(group: int) -> list[str]:
    """The living processes of a process group, by what the kernel says of each: `pid (name) state parent group ...`."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended since
            line = file.read_text()
            state, _, its_group = line.rpartition(") ")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                found.append(line)
    return found


def test_interrupted_it_continues_and_nobody_else_may_write_meanwhile(
    archlab: Archlab, command: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Three seeds: Ctrl-C, as a terminal sends it, while the second trains; another process meanwhile is refused."""
    words = ["compare", *TINY.split(), "--seeds", "3", "--train.steps", "150", "--out", str(tmp_path / "run")]
    folder = tmp_path / "run"
    line = [str(command), *words]
    started = subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(lambda: (folder / "cells").is_dir(), started)
        assert cli.main(words) == 2
        second = capsys.readouterr().err
        assert second.startswith("archlab: ")
        assert str(folder) in second
        assert second.count("\n") == 1
        wait_for(lambda: records(folder), started)
        os.killpg(started.pid, signal.SIGINT)
        printed, complaint = started.communicate(timeout=60)
    finally:
        if started.poll() is None:
            os.killpg(started.pid, signal.SIGKILL)
    assert (started.returncode, complaint) == (130, "")
    assert "Traceback" not in printed
    wait_until(lambda: not members(started.pid))  # the fork server leaves by itself, when it sees that we have
    before = records(folder)
    assert 1 <= len(before) < 4

    corrupt = folder / "cells" / sorted(before)[0]
    corrupt.write_text(before[corrupt.name][:100])
    again = archlab(*words)
    assert (again.returncode, again.stderr) == (0, "")
    after = records(folder)
    assert len(after) == 4  # three trainings and the measurement of cost
    assert all(json.loads(text)["status"] == "done" for text in after.values())
    assert all(after[name] == text for name, text in before.items() if name != corrupt.name)
    assert corrupt.with_name(f"{corrupt.name}.corrupt").is_file()
    assert f"{corrupt.name}.corrupt" in again.stdout
