"""`archlab verify`: each behaviour can fail, says so in its exit status, and is judged by all of its cells."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import Archlab
from rich.console import Console

from experiments import cli, config, verify
from experiments.plan import plan
from experiments.verify import Accuracy, Finding

QUIET = Console(quiet=True)
TRAINED = {
    "attention_recall": ({"gqa": {4: 1.0}}, {"gqa": {4: 0.9}}),
    "bahdanau_length": (
        {"seq2seq:attention=none": {4: 0.95, 12: 0.3}, "seq2seq:attention=bahdanau": {4: 1.0, 12: 0.99}},
        {"seq2seq:attention=none": {4: 0.95, 12: 0.9}, "seq2seq:attention=bahdanau": {4: 1.0, 12: 0.99}},
    ),
    "induction_length": (
        {"mamba": {64: 1.0, 256: 0.99}, "gqa": {64: 1.0, 256: 0.2}},
        {"mamba": {64: 1.0, 256: 0.5}, "gqa": {64: 1.0, 256: 0.2}},
    ),
    "selective_copying": (
        {"mamba": {32: 0.99, 64: 0.98}, "mamba:selective=false": {32: 0.8, 64: 0.5}},
        {"mamba": {32: 0.99, 64: 0.98}, "mamba:selective=false": {32: 0.9, 64: 0.8}},
    ),
}
"""Behaviour -> scores at which it holds, and does not."""


def module(name: str) -> ModuleType:
    return importlib.import_module(f"experiments.verify.{name}")


@pytest.mark.parametrize("name", verify.names())
def test_every_behaviour_says_what_was_published_where_and_within_what(name: str) -> None:
    found = module(name)
    assert all(isinstance(text, str) and text for text in (found.CLAIM, found.SOURCE, found.HOLDS_IF))
    assert hasattr(found, "EXPERIMENT") == (name in TRAINED) != hasattr(found, "check")


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_behaviour_can_fail(name: str) -> None:
    holds, fails = TRAINED[name]
    assert module(name).judge(holds).holds
    assert not module(name).judge(fails).holds


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_judged_is_what_is_trained(name: str) -> None:
    """The architectures and lengths of the judgement are those of the experiment, and its sizes exist."""
    planned = plan(config.load(None, module(name).EXPERIMENT))
    holds, _ = TRAINED[name]
    assert {entry.arch.label for entry in planned.entries} == holds.keys()
    lengths = set(next(iter(module(name).EXPERIMENT["task"].values()))["test_lengths"])
    assert all(set(scores) <= lengths for scores in holds.values())


@pytest.mark.parametrize("name", ["mamba_state", "llama_cache", "scan_backends"])
def test_what_needs_no_training_holds(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The larger ones take long to build, and test_profile_memory knows them.
    monkeypatch.setattr(module("llama_cache"), "_KIB", {"llama-3-8b": 128})
    finding = module(name).check()
    assert finding.holds, finding.here


def test_the_command_reproduces_one(archlab: Archlab, tmp_path: Path) -> None:
    done = archlab("verify", "--only", "mamba_state", "--out", tmp_path / "v")
    assert (done.returncode, done.stderr) == (0, "")
    assert "holds: 1,400,832 and 1,400,832 bytes" in done.stdout
    assert json.loads((tmp_path / "v" / "verify.json").read_text())["mamba_state"]["holds"]


def test_an_unknown_behaviour_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["verify", "--only", "mamba_stat", "--out", str(tmp_path / "v")]) == 2
    assert "unknown behaviour 'mamba_stat': did you mean 'mamba_state'?" in capsys.readouterr().err
    assert not (tmp_path / "v").exists()


def test_a_behaviour_that_does_not_hold_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module("mamba_state"), "check", lambda: Finding("3 bytes", holds=False))
    assert verify.verify(["mamba_state"], tmp_path, QUIET) == 1
    assert json.loads((tmp_path / "verify.json").read_text()) == {"mamba_state": {"here": "3 bytes", "holds": False}}


TINY: dict[str, Any] = {
    "archs": ["gqa"],
    "tasks": ["reverse"],
    "seeds": 2,
    "train": {"steps": 4, "batch_size": 8, "val_every": 4, "val_examples": 8, "test_examples": 8},
    "arch": {"gqa": {"d_model": 16, "n_layers": 1, "d_ff": 16, "n_heads": 2, "n_kv_heads": 1}},
    "task": {"reverse": {"train_lengths": [2, 3], "test_lengths": [2, 3]}},
    "budget": {"by": "none"},
    "cost": {"contexts": [8, 16], "seconds": 0.01},
}


def test_a_trained_behaviour_is_judged_by_the_scores_of_its_cells(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[Accuracy] = []

    def judge(accuracy: Accuracy) -> Finding:
        seen.append(accuracy)
        return Finding("as trained", holds=True)

    recall = module("attention_recall")
    monkeypatch.setattr(recall, "EXPERIMENT", TINY)
    monkeypatch.setattr(recall, "judge", judge)
    assert verify.verify(["attention_recall"], tmp_path, QUIET) == 0
    records = [json.loads(file.read_text()) for file in (tmp_path / "attention_recall" / "cells").glob("*.json")]
    trained = [record["quality"]["test"] for record in records if record["kind"] == "train"]
    assert len(trained) == 2
    mean = sum(scores["3"]["token_accuracy"] for scores in trained) / 2
    assert seen[0]["gqa"].keys() == {2, 3}
    assert seen[0]["gqa"][3] == pytest.approx(mean)


def test_a_cell_that_ended_otherwise_is_no_reproduction(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recall = module("attention_recall")
    monkeypatch.setattr(recall, "EXPERIMENT", {**TINY, "seeds": 1, "timeout": 0.01})
    assert verify.verify(["attention_recall"], tmp_path, QUIET) == 1
    assert "ended as timeout" in json.loads((tmp_path / "verify.json").read_text())["attention_recall"]["here"]
