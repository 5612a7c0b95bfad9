"""The command as users type it: its options, its refusals, and a whole comparison from start to report."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Archlab

from experiments import cli, options

COMPARE = """
    --help --config --out --jobs --retry --dry-run --name --archs --tasks --seeds --lr --lr_grid --timeout
    --memory_limit --keep_checkpoints --train.steps --train.batch_size --train.warmup --train.weight_decay --train.clip
    --train.label_smoothing --train.precision --train.accelerator --train.devices --train.strategy --train.val_every
    --train.val_examples --train.test_examples --train.stop_when_solved --budget.by --budget.value --cost.contexts
    --cost.batch_size --cost.seconds
"""

PROFILE = """
    --help --config --out --retry --name --archs --pretrained --contexts --predicted --modes --rows --decode_rows
    --vocab_size --dtype --device --chunk --fallback --predict --frontier --trace --card --seconds --timeout
    --memory_limit --budget.by --budget.value
"""


@pytest.mark.parametrize(
    ("command", "surface"),
    [
        ("compare", COMPARE.split()),
        ("profile", PROFILE.split()),
        ("report", ["--help"]),
        ("tensorboard", ["--help", "--port"]),
        ("bench", ["--help", "--only", "--device", "--out"]),
        ("list", ["--help"]),
        ("doctor", ["--help"]),
        ("verify", ["--help", "--only", "--out"]),
    ],
)
def test_the_surface_is_frozen(command: str, surface: list[str]) -> None:
    """Options are a promise: adding or renaming one changes this list, knowingly."""
    assert options.option_names(options.commands(options.build_parser(command))[command]) == surface
    assert list(cli.COMMANDS) == ["compare", "profile", "report", "tensorboard", "bench", "verify", "list", "doctor"]


def test_help_is_fast_and_light(archlab: Archlab) -> None:
    begin = time.perf_counter()
    done = archlab("--help")
    seconds = time.perf_counter() - begin
    assert done.returncode == 0
    assert "compare" in done.stdout
    assert seconds < 2.0  # 0.2 s on an idle machine; the rest is for a busy one
    code = """
import sys
from experiments import cli, options
options.build_parser('compare').format_help()
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout.split()
    assert "experiments.config" in loaded
    assert not {"torch", "lightning", "numpy", "matplotlib", "rich"} & set(loaded)


def test_help_of_compare_explains_every_setting(archlab: Archlab) -> None:
    text = " ".join(archlab("compare", "--help").stdout.split())
    assert "--arch.NAME.KEY VALUE" in text
    assert "Optimiser steps; fewer when solved." in text
    assert "default: 1000" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("cmpare", "unknown command 'cmpare': did you mean 'compare'?"),
        ("compare --trian.steps 3", "unknown option --trian.steps: did you mean '--train.steps'?"),
        ("compare --seed 3", "unknown option --seed: did you mean '--seeds'?"),
        ("compare --task.NAME", "--task.NAME is no setting: expected --task.NAME.KEY VALUE"),
        ("compare --arch.gqa 3", "--arch.gqa is no setting: expected --arch.NAME.KEY VALUE"),
        ("compare --arch.gqa.n_kv_heads", "--arch.gqa.n_kv_heads expects a value"),
        ("compare --arch.gqa.n_kv_heads --seeds 3", "--arch.gqa.n_kv_heads expects a value"),
        ("compare --train.steps many", "--train.steps: expected int, got many"),
        ("compare --train.steps", "--train.steps: expected one argument"),
        ("compare --budget.by mass", "expected one of 'parameters', 'flops', 'state', 'none', got mass"),
        ("compare --lr_grid 1e-3,fast", "--lr_grid: invalid comma list of float value: '1e-3,fast'"),
        ("compare runs/x", "unexpected runs/x"),
        ("compare --jobs 0", "jobs must be at least 1, got 0"),
        ("compare --retry faild", "unknown status to retry 'faild': did you mean 'failed'?"),
        ("report", "expected a folder: DIR"),
        ("report nowhere", "nowhere holds no experiment"),
        ("tensorboard nowhere", "nowhere holds no TensorBoard events"),
        ("tensorboard nowhere --port http", "--port: expected int, got http"),
        ("list --all", "unknown option --all"),
        ("report --arch.gqa.n_kv_heads 1 x", "unknown option --arch.gqa.n_kv_heads"),
        ("compare --archs [gqa", "--archs: invalid comma list of str value: '[gqa'"),
        ("compare --lr fast", "--lr: expected float or null, got fast"),
        ("compare --train.strategy fsdp", "expected one of 'auto', 'ddp', got fsdp"),
    ],
)
def test_what_cannot_be_understood_is_one_sentence(
    words: str, sentence: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(words.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("archlab: ")
    assert sentence in printed.err
    assert printed.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_typed_shows_the_help(archlab: Archlab) -> None:
    done = archlab()
    assert (done.returncode, done.stderr) == (2, "")
    assert "COMMAND" in done.stdout


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("--seeds 5 --train.steps=7", {"seeds": 5, "train": {"steps": 7}}),
        ("--archs a,b:k=1+l=2,./own.py", {"archs": ("a", "b:k=1+l=2", "./own.py")}),
        ("--lr_grid 1e-3,3e-3 --cost.contexts 64,128", {"lr_grid": (1e-3, 3e-3), "cost": {"contexts": (64, 128)}}),
        ("--arch.gqa.n_kv_heads 1", {"arch": {"gqa": {"n_kv_heads": 1}}}),
        ("--arch.mamba.selective=false", {"arch": {"mamba": {"selective": False}}}),
        ("--arch../own.py.depth 2", {"arch": {"./own.py": {"depth": 2}}}),
        ("--task.text.path=a/b.txt", {"task": {"text": {"path": "a/b.txt"}}}),
        ("--task.recall.test_lengths 8,16", {"task": {"recall": {"test_lengths": [8, 16]}}}),
        ("--task.text.path a,b.txt", {"task": {"text": {"path": "a,b.txt"}}}),
        ("--task.text.path @notes --task.text.x [1,", {"task": {"text": {"path": "@notes", "x": "[1,"}}}),
        ("--tasks recall:test_lengths=[4,8],reverse", {"tasks": ("recall:test_lengths=[4,8]", "reverse")}),
        ("--per_task.text.steps 40 --per_task.text.seeds 1", {"per_task": {"text": {"steps": 40, "seeds": 1}}}),
        ("--arch.gqa.learning_rate 1e-3", {"arch": {"gqa": {"learning_rate": 1e-3}}}),
        ("--lr null --train.precision 32", {"lr": None, "train": {"precision": "32"}}),
        ("--train.stop_when_solved false", {"train": {"stop_when_solved": False}}),
        ("--config quick --dry-run", {"config": "quick", "dry_run": True}),
        ("--retry failed,stale", {"retry": ("failed", "stale")}),
        ("", {}),
    ],
)
def test_only_what_was_typed_is_given(words: str, given: dict[str, object]) -> None:
    """Defaults must not hide what a preset says."""
    assert options.parse(["compare", *words.split()]) == ("compare", given)


def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(given: dict[str, object]) -> int:
        with open("/dev/full", "w") as file:
            file.write("x")
        return 0

    monkeypatch.setitem(cli.COMMANDS, "list", full)
    assert cli.main(["list"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("archlab: the disk is full")
    assert printed.count("\n") == 1


def test_a_file_in_the_way_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "list", lambda given: len(tmp_path.read_text()))
    assert cli.main(["list"]) == 2
    assert capsys.readouterr().err.startswith(f"archlab: cannot use {tmp_path}: Is a directory")


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(given: dict[str, object]) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
        return 0

    monkeypatch.setitem(cli.COMMANDS, "list", interrupted)
    assert cli.main(["list"]) == 130
