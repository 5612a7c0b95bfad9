"""The tables that a comparison prints before it runs."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from experiments import config, plan, tables


def printed(made: plan.Plan, **options: Any) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=140, color_system=None).print(tables.plan_table(made, **options))
    return [" ".join(line.split()) for line in out.getvalue().splitlines() if line.strip()]


def planned(**overrides: Any) -> plan.Plan:
    base = {"archs": ["gqa", "gqa:d_model=32"], "tasks": ["copy"], "budget": {"value": 20_000}, "train": {"steps": 10}}
    return plan.plan(config.load(None, config.merge(base, overrides)))


def test_every_entry_is_a_row_with_what_was_solved() -> None:
    title, head, _, task, both, one = printed(planned())
    assert title == "budget: 20,000 parameters without embeddings and readout"
    assert head == "architecture cells rate width, inner parameters off"
    assert task == "copy"
    assert both == "gqa 3 0.002 32, 72 21,344 +0.6%"
    assert one == "gqa:d_model=32 3 0.002 d_ff 72 21,344 +0.6%"


def test_without_matching_there_is_no_deviation() -> None:
    title, *_, row = printed(planned(archs=["gqa"], budget={"by": "none"}))
    assert title == "sizes as given, not matched (budget.by none)"
    assert row.endswith(" -")


def test_a_dry_run_adds_the_time_of_a_training() -> None:
    *_, known, unknown = printed(planned(), steps={0: 6.0, 1: None})
    assert known.endswith("0:01:00")
    assert unknown.endswith("?")


def test_the_total_counts_seeds_and_jobs() -> None:
    assert tables.total_seconds(planned(), {0: 6.0, 1: None}, jobs=2) == pytest.approx(6 * 10 * 3 / 2)
    assert planned(lr_grid=[1e-4, 1e-3, 1e-2, 1e-1]).entries[0].trainings == 4 + 2


def test_ends_are_counted() -> None:
    records = {str(index): {"status": status} for index, status in enumerate(["done", "oom", "done"])}
    assert tables.counts(records) == "2 done, 1 oom"
    assert tables.counts({}) == "none"
