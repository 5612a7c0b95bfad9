"""`archlab bench`: its table and its record, of contestants whose times and memory are known."""

from __future__ import annotations

import gc
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from experiments import bench
from experiments.bench import _measure
from experiments.bench._measure import Case
from experiments.bench._peers import peer
from experiments.errors import UserError

CPU = torch.device("cpu")


def quiet(case: Case) -> dict:
    return _measure.run(case, CPU, lambda said: None)


def test_ratio_and_missing_peers() -> None:
    peers = {"slow": lambda: time.sleep(0.06), "absent": peer("no_such_module", lambda module: module.run)}
    record = quiet(Case("nap", lambda: time.sleep(0.02), {"copy": 2.0**20}, peers))
    assert 2 < record["peers"]["slow"]["ratio"] < 5
    assert record["peers"]["absent"] == {"missing": "missing (no_such_module)"}
    assert 0 < record["share_of_ceiling"] < 1


def test_memory_is_what_a_run_takes_above_what_is_held() -> None:
    record = quiet(Case("64 MiB", lambda: torch.ones(2**24), {}))
    assert 60 * 2**20 < record["peak_bytes"] < 80 * 2**20


def test_a_peer_that_fails_is_named_and_ours_that_fails_is_an_error() -> None:
    def fail() -> None:
        raise RuntimeError("out of luck")

    assert quiet(Case("peer", lambda: None, {}, {"peer": fail}))["peers"] == {"peer": {"missing": "out of luck"}}
    with pytest.raises(RuntimeError, match="out of luck"):
        quiet(Case("ours", fail, {}))


@pytest.mark.parametrize("together", [False, True])
def test_the_floor_is_the_largest_or_the_sum(together: bool) -> None:
    record = quiet(
        Case("two", lambda: None, {"copy": 1e9, "exp": 1e9, "reciprocal": 1.0, "gemm": 1.0}, together=together)
    )
    floors = record["floors"].values()
    assert record["floor_seconds"] == pytest.approx(sum(floors) if together else max(floors))
    assert all(rate > 1e6 for rate in record["ceilings"].values())


def test_the_share_is_that_of_a_turn() -> None:
    """The machine is slow at times: only what was timed in one turn is compared."""
    times = {"ours": [2.0, 4.0, 6.0], "ceiling exp": [1.0, 3.0, 3.6]}
    record = _measure._record(Case("drift", lambda: None, {"exp": 10.0}), times, {"exp": 10.0}, {"ours": None}, {})
    assert record["floor_seconds"] == pytest.approx(3.0)
    assert record["share_of_ceiling"] == pytest.approx(0.6)


def test_table_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module("experiments.bench.causal_conv1d")
    monkeypatch.setattr(module, "cases", lambda device: iter([Case("tiny", lambda: None, {"copy": 1.0})]))
    out, console = tmp_path / "deep" / "bench.json", Console(record=True, width=120)
    assert bench.bench(["causal_conv1d"], None, out, console) == 0
    assert "tiny" in console.export_text()
    (record,) = json.loads(out.read_text())["records"]
    assert record["benchmark"] == "causal_conv1d"


def test_an_interrupted_run_keeps_and_shows_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cases(device: torch.device) -> Iterator[Case]:
        yield Case("tiny", lambda: None, {"copy": 1.0})
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module("experiments.bench.causal_conv1d"), "cases", cases)
    out, console = tmp_path / "bench.json", Console(record=True, width=120)
    with pytest.raises(KeyboardInterrupt):
        bench.bench(["causal_conv1d"], None, out, console)
    assert "tiny" in console.export_text()
    assert [record["name"] for record in json.loads(out.read_text())["records"]] == ["tiny"]


def test_every_benchmark_makes_its_first_case() -> None:
    for name in bench.names():
        module = importlib.import_module(f"experiments.bench.{name}")
        assert isinstance(next(iter(module.cases(CPU))), Case)


def test_what_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'selective_scan'"):
        bench.bench(["selective_scn"], None, tmp_path / "x", Console())
    with pytest.raises(UserError, match="--device nowhere cannot be used"):
        bench.bench(None, "nowhere", tmp_path / "x", Console())


def test_what_was_kept_from_the_garbage_collector_is_given_back() -> None:
    """Else modules of other languages complain at exit."""
    _measure._take_turns({"nothing": lambda: None}, torch.device("cpu"))
    assert gc.get_freeze_count() == 0
