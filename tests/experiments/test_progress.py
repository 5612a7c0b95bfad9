"""What is shown while cells run, and what the time left is reckoned from."""

from __future__ import annotations

import io
from typing import Any

import pytest
from fake_workers import record
from rich.console import Console

from experiments import progress
from experiments.cell import Cell
from experiments.progress import Clock, Display


def cell(label: str = "gqa", task: str = "reverse", seed: int = 0, kind: Any = "train") -> Cell:
    return Cell(
        kind=kind, label=label, arch="gqa", arch_config={}, task_label=task, task=task, task_config={}, seed=seed
    )


def display(terminal: bool) -> tuple[Display, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=140, color_system=None)
    return Display(console, lambda cell, record: "score [0.5]".replace("[", r"\[")), out


def test_a_cell_is_expected_to_take_as_long_as_the_most_similar_ones() -> None:
    clock = Clock()
    assert clock.expect(cell()) is None
    clock.learn(cell("mamba", "recall"), 40)
    assert clock.expect(cell()) == 40
    clock.learn(cell("mamba", "reverse"), 10)
    assert clock.expect(cell()) == 10
    clock.learn(cell("gqa", "reverse"), 2)
    clock.learn(cell("gqa", "reverse", seed=1), 4)
    assert clock.expect(cell(seed=2)) == 3
    assert clock.expect(cell(kind="cost")) == 6


def test_a_running_cell_is_judged_by_its_steps() -> None:
    clock = Clock()
    assert clock.left(cell(), 10, {"step": 20, "steps": 100}) == 40
    assert clock.left(cell(), 10, {}) is None
    clock.learn(cell(), 25)
    assert clock.left(cell(), 10, {"step": 0, "steps": 100}) == 15
    assert clock.left(cell(), 30, {}) == 0


def test_time_left_counts_jobs_and_waits_for_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown, _ = display(terminal=False)
    cells = [cell(seed=seed) for seed in range(4)]
    shown.expect(cells, jobs=2)
    assert shown._left() is None
    shown.started(cells[0])
    shown.started(cells[1])
    now[0] += 10
    shown.ended(cells[0], record(cells[0]))
    assert shown._left() == 0 + (10 + 10) / 2
    shown.progress({cells[1].key: {"step": 1, "steps": 11}})
    assert shown._left() == 100 + 10


def test_off_a_terminal_results_are_lines_and_nothing_else() -> None:
    shown, out = display(terminal=False)
    cells = [cell(), cell("mamba[x]", "recall", seed=1)]
    shown.expect(cells, jobs=1)
    with shown:
        for each, made in zip(
            cells, (record(cells[0]), record(cells[1], status="oom", reason="too [big]")), strict=True
        ):
            shown.started(each)
            shown.progress({each.key: {}})
            shown.progress({each.key: {"phase": "train", "step": 1, "steps": 2, "loss": None}})
            shown.ended(each, made)
    lines = [" ".join(line.split()) for line in out.getvalue().splitlines()]
    assert lines == [
        "1/2 done gqa · reverse · seed 0 0:00:01 score [0.5]",
        f"2/2 oom mamba[x] · recall · seed 1 0:00:01 too [big] (cells/{cells[1].key}.log)",
    ]


def test_on_a_terminal_running_cells_have_bars() -> None:
    shown, out = display(terminal=True)
    shown.expect([cell(), cell(seed=1)], jobs=1)
    with shown:
        shown.started(cell())
        shown.progress({cell().key: {"phase": "train", "step": 1, "steps": 2, "loss": 0.25}})
        shown.bars.refresh()
    assert "gqa · reverse · seed 0" in out.getvalue()
    assert "train 1/2, loss 0.250" in out.getvalue()
    assert "0/2, time left unknown yet" in out.getvalue()
