"""The report against ledgers made by hand, whose numbers are worked out here independently."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
from made_ledger import make_cell, make_cost, make_quality, make_record, make_runs, markdown, row, section, write_ledger
from rich.console import Console

from experiments import provenance, report
from experiments.report.units import NOTHING

T2 = 4.302653
"""Student's t for two degrees of freedom, 95 % two-sided."""


@pytest.fixture(autouse=True)
def _sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here depends on which sources there are."""
    monkeypatch.setattr(provenance, "sources", lambda arch, task: f"{arch} and {task}")


def terminal(folder: Path) -> str:
    shown = io.StringIO()
    Console(file=shown, width=120).print(report.table(folder))
    return shown.getvalue()


def test_the_main_table_holds_means_and_t_intervals(tmp_path: Path) -> None:
    records = []
    for seed, (near, far) in enumerate([(0.90, 0.30), (0.95, 0.40), (0.97, 0.35)]):
        quality = make_quality("reverse", [1.0, near, 0.5, far], solved=(400, 500, 450)[seed])
        records.append(make_record(make_cell("gqa", "reverse", seed), quality=quality))
    records.append(make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost(speed=64_000, state=128)))
    cells = row(section(markdown(write_ledger(tmp_path, records)), "Results"), "gqa")
    trained = [(1 + near) / 2 for near in (0.90, 0.95, 0.97)]
    half = T2 * statistics.stdev(trained) / math.sqrt(3)
    assert cells[1] == f"{statistics.fmean(trained):.3f} ± {half:.3f}" == "0.970 ± 0.045"
    assert cells[2] == f"0.350 ± {T2 * 0.05 / math.sqrt(3):.3f}"
    assert cells[4:] == ["450", "64.0 k", "192 k", "6.40 k", "40.1 MiB", "32 KiB", "105,000"]


def test_the_terminal_shows_the_same_numbers(tmp_path: Path) -> None:
    records = [*make_runs("gqa", [0.90, 0.95, 0.97]), *make_runs("mamba", [0.5, 0.6])]
    cost = make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost(speed=64_000, state=128))
    lines = terminal(write_ledger(tmp_path, [*records, cost])).splitlines()
    half = T2 * statistics.stdev([0.90, 0.95, 0.97]) / math.sqrt(3)
    assert f"0.940±{half:.3f} 0.940±{half:.3f} 64.0 k 6.40 k 40.1 MiB 32 KiB" in " ".join(
        next(line for line in lines if "gqa" in line).split()
    )
    assert ["0.550±0.635*", "0.550±0.635*", *[NOTHING] * 4] == next(line for line in lines if "mamba" in line).split()[
        1:
    ]


def test_a_clear_winner_is_named_with_its_interval(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path, [*make_runs("gqa", [0.98, 0.99, 0.985]), *make_runs("mamba", [0.60, 0.62, 0.61])])
    verdict = section(markdown(folder), "Verdict")
    assert "**`gqa` wins on `reverse`** at trained lengths (8, 16), with token accuracy 0.985 ± 0.012" in verdict
    assert "Behind it: `mamba` 0.610 ± 0.025." in verdict


def test_what_is_not_distinguishable_is_no_win(tmp_path: Path) -> None:
    folder = write_ledger(tmp_path, [*make_runs("gqa", [0.90, 0.80, 0.85]), *make_runs("mamba", [0.85, 0.83, 0.80])])
    text = markdown(folder)
    assert "**No single winner on `reverse`**" in text
    assert "Not distinguishable from it: `mamba`" in text
    assert "wins" not in section(text, "Verdict")
    assert "| not distinguishable |" in section(text, "Pairs")


def test_a_sure_but_tiny_difference_is_no_win(tmp_path: Path) -> None:
    folder = write_ledger(
        tmp_path, [*make_runs("gqa", [0.999, 0.998, 0.999]), *make_runs("mamba", [0.995, 0.994, 0.995])]
    )
    assert "Less than 0.01 behind it, which counts as no win: `mamba`" in markdown(folder)


def test_one_seed_gives_no_verdict(tmp_path: Path) -> None:
    records = [*make_runs("gqa", [2.2], "text"), *make_runs("mamba", [2.9], "text")]
    text = markdown(write_ledger(tmp_path, records, tasks=["text"], seeds=1))
    assert "**No verdict on `text`**: one seed" in text
    assert "wins" not in text
    assert row(text, "gqa")[1] == "2.200"


def test_fewer_bits_per_byte_win(tmp_path: Path) -> None:
    records = [*make_runs("gqa", [2.20, 2.21, 2.22], "text"), *make_runs("mamba", [2.90, 2.91, 2.93], "text")]
    text = markdown(write_ledger(tmp_path, records, tasks=["text"]))
    assert (
        "**`gqa` wins on `text`** at lengths up to those in training (32, 128), with bits per byte 2.210 ± 0.025"
        in text
    )


@pytest.mark.parametrize("status", ["oom", "nan", "timeout", "failed"])
def test_a_run_that_ended_badly_is_shown_with_reason_and_log_and_left_out(tmp_path: Path, status: str) -> None:
    *good, bad = make_runs("mamba", [0.60, 0.62, 0.61])
    bad |= {"status": status, "reason": "it said | <script>alert(1)</script> *no*", "quality": None}
    folder = write_ledger(
        tmp_path, [*make_runs("gqa", [0.9, 0.91, 0.92]), *make_runs("transformer", [0.3] * 3), *good, bad]
    )
    text = markdown(folder)
    assert f"Left out: `mamba` (1 of 3 seeds ended as {status})" in text
    assert row(text, "mamba")[1] == "0.610 ± 0.127 (2 seeds)"
    failures = section(text, "Failures")
    assert f"| {status} | it said \\| \\<script\\>" in failures
    assert f"(cells/{bad['key']}.log)" in failures
    page = report.write(folder).read_text()
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt; *no*" in page


def test_stale_records_are_shown_and_enter_nothing_else(tmp_path: Path) -> None:
    stale = make_runs("mamba", [1.0, 1.0, 1.0], sources="of yesterday")
    text = markdown(
        write_ledger(tmp_path, [*make_runs("gqa", [0.5, 0.51, 0.52]), *make_runs("transformer", [0.2] * 3), *stale])
    )
    assert "3 stale, in no verdict" in text
    assert "mamba" not in section(text, "Verdict")
    assert row(section(text, "Results"), "mamba")[1] == "stale"
    assert section(text, "Stale records").count("| token accuracy 1.000 | the sources have changed since |") == 3


def test_a_record_whose_own_source_is_gone_is_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_ledger(tmp_path, make_runs("gqa", [0.5]))

    def gone(arch: str, task: str) -> str:
        raise FileNotFoundError(arch)

    monkeypatch.setattr(provenance, "sources", gone)
    assert "a source file of its own is gone" in section(markdown(folder), "Stale records")


def test_todays_records_are_not_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    record = make_record(make_cell("gqa", "reverse"), quality=make_quality("reverse", [1.0] * 4))
    record["sources"] = provenance.sources("gqa", "reverse")
    assert "stale" not in section(markdown(write_ledger(tmp_path, [record])), "Verdict")
    assert not section(markdown(tmp_path), "Stale records")


def test_runs_on_different_data_share_no_table(tmp_path: Path) -> None:
    other = make_runs("mamba", [0.6, 0.62, 0.61])
    other[1]["data"] = {"fingerprint": "something else"}
    folder = write_ledger(tmp_path, [*make_runs("gqa", [0.9, 0.91, 0.92]), *other])
    text = markdown(folder)
    assert "**No verdict on `reverse`**: with seed 1 the data differ" in text
    assert "something else (mamba)" in text
    assert "wins" not in text
    assert not re.search(r"^\| `gqa` \| 0\.9", text, re.MULTILINE)
    assert "| `reverse` | 1 | `something else` | `mamba` |" in section(text, "Environment")
    assert "the data differ" in terminal(folder)


def test_a_slow_fallback_marks_the_costs_and_wins_none(tmp_path: Path) -> None:
    fast = make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost(speed=10_000))
    also = make_record(make_cell("transformer", "reverse", kind="cost"), cost=make_cost(speed=20_000))
    slow = make_record(make_cell("mamba", "reverse", kind="cost"), cost=make_cost(speed=90_000))
    slow["ran"]["fallback"] = "reference"
    text = markdown(
        write_ledger(tmp_path, [*make_runs("gqa", [0.9] * 3), *make_runs("mamba", [0.8] * 3), fast, also, slow])
    )
    assert "fastest training `transformer` (20.0 k tokens/s)" in text
    assert "Left out: `mamba` (slow fallback `reference`)" in text
    assert row(section(text, "Results"), "mamba")[5] == "90.0 k (reference)"


@pytest.mark.parametrize(
    ("settings_of", "sentence"),
    [
        ({}, "**One declared learning rate per architecture, not selected**: `gqa` 0.002."),
        ({"lr": 1e-3}, "**One learning rate for all**, 0.001, not selected."),
        ({"lr_grid": [1e-4, 1e-3, 1e-2, 1e-1]}, "**Learning rates were selected** on validation with seed 0"),
    ],
)
def test_the_first_lines_say_how_learning_rates_came(
    tmp_path: Path, settings_of: dict[str, Any], sentence: str
) -> None:
    text = markdown(write_ledger(tmp_path, make_runs("gqa", [0.5, 0.6, 0.7]), **settings_of))
    assert sentence in "\n".join(text.splitlines()[:5])
    assert "**Budget**: 100,000 trainable parameters without embedding and readout; " in text
    assert "by +2.1 %." in text.split("## ")[0]


def test_only_the_rate_selected_on_validation_counts(tmp_path: Path) -> None:
    records = []
    for lr, validation, test in [(1e-4, 0.3, 0.99), (1e-3, 0.8, 0.70), (1e-2, 0.6, 0.98), (1e-1, 0.1, 0.97)]:
        quality = make_quality("reverse", [test] * 4)
        quality["validation"] = make_quality("reverse", [validation] * 4)["validation"]
        records.append(make_record(make_cell("gqa", "reverse", lr=lr), quality=quality))
    for seed in (1, 2):
        quality = make_quality("reverse", [0.70] * 4)
        records.append(make_record(make_cell("gqa", "reverse", seed, lr=1e-3), quality=quality))
    folder = write_ledger(tmp_path, records, lr_grid=[1e-4, 1e-3, 1e-2, 1e-1])
    assert row(section(markdown(folder), "Results"), "gqa")[1] == "0.700 ± 0.000"
    report.write(folder)
    assert (folder / "figures" / "rates.png").exists()


def test_memory_has_the_exponent_of_its_growth(tmp_path: Path) -> None:
    records = [
        make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost(state=64, slope=1.0)),
        make_record(make_cell("mamba", "reverse", kind="cost"), cost=make_cost(state=8, slope=0.0)),
    ]
    memory = section(markdown(write_ledger(tmp_path, records)), "Memory")
    assert row(memory, "gqa")[1:4] == ["64 KiB", "512 KiB", "L^1.00"]
    assert row(memory, "mamba")[1:4] == ["8 KiB", "8 KiB", "L^0.00"]


def test_a_context_that_did_not_fit_is_named(tmp_path: Path) -> None:
    cost = make_cost(state=64)
    cost["contexts"][-1] = {"context": 1024, "status": "oom", "reason": "out of memory: of course"}
    folder = write_ledger(tmp_path, [make_record(make_cell("gqa", "reverse", kind="cost"), cost=cost)])
    memory = section(markdown(folder), "Memory")
    assert row(memory, "gqa")[1] == "64 KiB"
    assert "`gqa` ran out of memory at a context of 1,024." in memory


def test_tasks_in_which_memory_grows_alike_share_a_table(tmp_path: Path) -> None:
    sizes = {"reverse": 64, "recall": 64, "text": 8}
    records = [
        make_record(make_cell("gqa", task, kind="cost"), cost=make_cost(state=state)) for task, state in sizes.items()
    ]
    memory = section(markdown(write_ledger(tmp_path, records)), "Memory")
    assert [line.split(" | ")[0] for line in memory.splitlines() if "state at" in line] == [
        "| reverse and recall",
        "| text",
    ]
    assert memory.count("`gqa`") == 2


def test_the_csv_has_every_number_of_every_cell(tmp_path: Path) -> None:
    train, cost = (
        make_runs("gqa", [0.123456789])[0],
        make_record(make_cell("gqa", "reverse", kind="cost"), cost=make_cost()),
    )
    folder = write_ledger(tmp_path, [train, cost])
    report.write(folder)
    with (folder / "results.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["key"], first["kind"], first["architecture"], first["seed"]) == (train["key"], "train", "gqa", "0")
    assert float(first["quality.test.16.token_accuracy"]) == 0.123456789
    assert float(first["arch_config.d_model"]) == 64
    assert float(first["train.steps"]) == 1000
    assert float(second["cost.contexts.1024.state_bytes"]) == cost["cost"]["contexts"][3]["state_bytes"]
    assert float(second["cost.train_tokens_per_second.low"]) == 47_500
    assert second["quality.test.16.token_accuracy"] == ""
