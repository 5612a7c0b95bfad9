"""Costs: counted where they can be counted, sane where they can only be timed."""

from __future__ import annotations

import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy_cell import cell, ignore

import archs
from archs.contract import Backbone, Tokens
from experiments import measure
from experiments.cell import Cell
from experiments.config import Cost


def small(name: str, **cost: Any) -> Cell:
    width, granule = archs.load(name).Config.width
    settings = {"contexts": (32, 64, 128), "batch_size": 4, "seconds": 0.01, **cost}
    return cell(kind="cost", arch=name, arch_config={width: 4 * granule, "n_layers": 1}, cost=Cost(**settings))


@pytest.fixture(scope="module")
def costs() -> dict[str, dict[str, Any]]:
    return {name: measure.measure(small(name), ignore)["cost"] for name in archs.names()}


@pytest.mark.parametrize("name", archs.names())
def test_every_architecture_is_measured(name: str, costs: dict[str, dict[str, Any]]) -> None:
    cost = costs[name]
    for what in ("train", "prefill", "decode"):
        rate = cost[f"{what}_tokens_per_second"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
    assert cost["parameters"] > cost["core_parameters"] > 0
    assert cost["state_bytes"] > 0
    assert [(row["context"], row["source"], row["target"]) for row in cost["contexts"]] == [
        (32, 16, 16),
        (64, 32, 32),
        (128, 64, 64),
    ]


def test_a_context_that_does_not_fit_is_a_result_and_longer_ones_are_left_alone() -> None:
    fits, first, _ = contexts = (32, 2**50, 2**51)
    *rows, last = measure.measure(small("gqa", contexts=contexts), ignore)["cost"]["contexts"]
    assert [row["context"] for row in rows] == [fits]
    assert (last["context"], last["status"]) == (first, "oom")
    assert "memory" in last["reason"]


def growth(cost: dict[str, Any], what: str) -> list[float]:
    values = [row[what] for row in cost["contexts"]]
    return [after / before for before, after in itertools.pairwise(values)]


def test_a_state_space_does_not_grow_and_a_cache_doubles(costs: dict[str, dict[str, Any]]) -> None:
    assert growth(costs["mamba"], "state_bytes") == [1.0, 1.0]
    assert growth(costs["gqa"], "state_bytes") == pytest.approx([2.0, 2.0], rel=0.05)


def test_activations_of_recurrence_grow_linearly(costs: dict[str, dict[str, Any]]) -> None:
    assert growth(costs["mamba"], "activation_bytes") == pytest.approx([2.0, 2.0], rel=0.1)
    assert growth(costs["gqa"], "activation_bytes") == pytest.approx([2.0, 2.0], rel=0.1)


class Known(nn.Module):
    """A multiplication and a sigmoid: what they save is known."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(7))
        self.register_buffer("scale", torch.ones(7))

    def features(self, source: Tokens, target: Tensor) -> Tensor:
        rows = target.to(torch.float32)[..., None].expand(-1, -1, 7).contiguous()
        return torch.sigmoid(rows * self.weight) * self.scale


def test_activation_bytes_count_each_storage_once_and_no_weight() -> None:
    target = torch.ones(1, 5, dtype=torch.int64)
    expected = 2 * 5 * 7 * 4  # the rows, for the weight's gradient, and the sigmoid's output
    backbone: Any = Known()
    assert measure.activation_bytes(backbone, Tokens(target), target) == expected


def test_repeated_counts_are_equal() -> None:
    counted = [measure.measure(small("gqa", contexts=(16,)), ignore)["cost"] for _ in range(2)]
    assert counted[0]["contexts"] == counted[1]["contexts"]
    assert counted[0]["state_bytes"] == counted[1]["state_bytes"]


def test_the_peak_sees_what_a_step_needs() -> None:
    """Weights, gradients and two moments, 16 bytes a parameter, of a model large enough to stand out."""
    large = cell(kind="cost", arch_config={"d_model": 1200}, cost=Cost(contexts=(4,), batch_size=1, seconds=0.01))
    cost = measure.measure(large, ignore)["cost"]
    assert 16 * cost["parameters"] < cost["peak_bytes"] < 32 * cost["parameters"]


def test_a_peak_that_is_gone_is_still_seen() -> None:
    with measure._peak(torch.device("cpu")) as peak:
        torch.ones(2**24).sum()  # 64 MiB
    seen = peak()
    assert seen is not None
    # Linux counts resident pages in batches per thread: a little less may be seen.
    assert 2**26 - 2**20 <= seen < 2**26 + 2**23


def test_no_peak_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(measure, "PROC", tmp_path / "absent")
    with measure._peak(torch.device("cpu")) as peak:
        torch.ones(2**20)
    assert peak() is None


def test_throughput_is_the_median_of_enough_timings() -> None:
    rates = iter([1.0, 2.0, 30.0, 10.0, 50.0, 20.0, 40.0])
    bench: Any = type("Bench", (), {"cell": cell(cost=Cost(seconds=0.0))})
    assert measure.throughput(bench, lambda _: next(rates)) == {"median": 30.0, "low": 20.0, "high": 40.0}


def test_decoding_generates_one_token_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    honest = Backbone.decode

    def decode(self: Backbone, state: Any, target: Tensor) -> Any:
        seen.append(tuple(target.shape))
        return honest(self, state, target)

    monkeypatch.setattr(Backbone, "decode", decode)
    measure.measure(small("gqa", contexts=(4,)), ignore)
    assert set(seen) == {(4, 1)}


def test_a_timing_waits_for_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = cell(cost=Cost(contexts=(4,), batch_size=2))
    bench: Any = measure.Bench(toy, type("Fabric", (), {"device": torch.device("cpu")})(), None, None, None)
    assert bench.timed(lambda: time.sleep(0.02)) >= 0.02


@pytest.mark.parametrize("name", archs.names())
def test_precision_reaches_the_measurement(name: str) -> None:
    width, granule = archs.load(name).Config.width
    mixed = cell(
        kind="cost",
        arch=name,
        arch_config={width: 4 * granule, "n_layers": 1},
        train={"precision": "bf16-mixed"},
        cost=Cost(contexts=(16,), batch_size=2, seconds=0.01),
    )
    assert measure.measure(mixed, ignore)["cost"]["train_tokens_per_second"]["median"] > 0


def test_the_device_is_lightnings_choice() -> None:
    assert measure.device("cpu") == torch.device("cpu")
    assert measure.device_name(torch.device("cpu"))
