"""Budget matching: every architecture meets one budget, by whatever is counted, and what the user set stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import archs
from archs.contract import Tokens
from experiments import match
from experiments.config import Budget
from experiments.errors import UserError
from experiments.match import MET, REFUSED, Shape, _nearest, fit
from experiments.variants import parse

SHAPE = Shape(vocab_size=20, source=12, target=13)
ARCHS = ("seq2seq:attention=none", "seq2seq:attention=bahdanau", "transformer", "gqa", "mamba")


def fitted(entry: str, **budget: Any) -> match.Match:
    variant = parse(entry, "arch")
    return fit(variant, variant.settings, SHAPE, Budget(**budget))


def built(entry: str, found: match.Match) -> archs.Backbone:
    variant = parse(entry, "arch")
    config = match.resolve(variant, {**variant.settings, **found.solved})
    return archs.build(variant.spec, SHAPE.vocab_size, **config)


@pytest.mark.parametrize("value", [20_000, 100_000, 1_000_000])
@pytest.mark.parametrize("entry", ARCHS)
def test_parameters_meet_the_budget_and_are_those_of_the_real_thing(entry: str, value: int) -> None:
    found = fitted(entry, by="parameters", value=value)
    backbone = built(entry, found)
    assert found.deviation == pytest.approx(found.value / value - 1)
    assert abs(found.deviation or 0) <= MET
    assert match.core_parameters(backbone) == found.core_parameters == found.value
    assert match.parameters(backbone) == found.parameters
    assert set(found.solved) == {name for name, _ in (type(backbone.config).width, type(backbone.config).inner)}


@pytest.mark.parametrize("entry", ["transformer", "gqa", "mamba"])
def test_flops_meet_the_budget(entry: str) -> None:
    found = fitted(entry, by="flops", value=100_000)
    assert abs(found.deviation or 0) <= MET


def test_flops_of_a_linear_layer_are_two_per_weight() -> None:
    class Linear(archs.Backbone[Any]):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.inner = nn.Linear(8, 8, bias=False)
            self.readout = nn.Linear(8, 20)

        def encode(self, source: Tokens, room: int = 0) -> Any:
            return self.inner(self.embedding(source.ids))

        def advance(self, state: Any, target: torch.Tensor) -> Any:
            return self.inner(self.embedding(target)), state

    with torch.device("meta"):
        backbone = Linear()
    assert match.flops(backbone, SHAPE) == 2 * 8 * 8
    assert match.core_parameters(backbone) == 8 * 8


@pytest.mark.parametrize("entry", ["seq2seq:attention=bahdanau", "gqa:n_heads=1+n_kv_heads=1", "mamba"])
def test_state_bytes_meet_the_budget_and_are_those_of_the_real_thing(entry: str) -> None:
    found = fitted(entry, by="state", value=40_000)
    source = Tokens(torch.ones(1, SHAPE.source, dtype=torch.int64))
    with torch.no_grad():
        assert built(entry, found).encode(source).nbytes == found.value
    assert abs(found.deviation or 0) <= REFUSED


def test_a_field_without_influence_is_not_solved() -> None:
    assert set(fitted("gqa", by="state", value=40_000).solved) == {"d_model"}


def test_what_the_user_set_is_left_alone() -> None:
    assert set(fitted("gqa:d_model=64").solved) == {"d_ff"}
    assert set(fitted("mamba:d_inner=96").solved) == {"d_model"}
    with pytest.raises(
        UserError, match=r"cannot meet the budget of 100,000 parameters: the nearest is 26,432 \(-74%\)"
    ):
        fitted("gqa:d_model=64+d_ff=4")


def test_a_budget_below_the_smallest_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserError, match=r"transformer cannot meet .* with d_model 16, d_ff 4; change budget\.value"):
        fitted("transformer", value=1000)


def test_the_width_is_one_that_the_heads_divide() -> None:
    found = fitted("transformer:n_heads=3", value=300_000)
    assert found.solved["d_model"] % 48 == 0


def test_without_matching_the_sizes_are_those_of_the_config() -> None:
    found = fitted("gqa", by="none")
    assert (found.solved, found.deviation, found.budget) == ({}, None, None)
    assert found.core_parameters == match.core_parameters(built("gqa", found))


def test_tied_embeddings_count_once() -> None:
    tied, own = (fitted(f"gqa:tied_embeddings={flag}", by="none") for flag in ("true", "false"))
    assert own.parameters - tied.parameters == 20 * 128
    assert own.core_parameters == tied.core_parameters


def test_a_solution_is_taken_over_where_it_fits_as_well() -> None:
    variant, budget = parse("gqa", "arch"), Budget(value=50_000)
    first = fit(variant, {}, SHAPE, budget)
    assert fit(variant, {}, Shape(40, 5, 6), budget, first).solved == first.solved


def test_frozen_parameters_do_not_count() -> None:
    backbone = archs.build("gqa", 20)
    before = match.core_parameters(backbone)
    backbone.norm.weight.requires_grad_(False)
    assert before - match.core_parameters(backbone) == 128


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("gpa", "did you mean 'gqa'"),
        ("gqa:n_kv_hed=1", "unknown key 'n_kv_hed' in gqa: did you mean 'n_kv_heads'"),
        ("gqa:n_kv_heads=3", "must be a multiple of n_kv_heads=3"),
        ("gqa:n_heads=many", "gqa.n_heads must be an integer, got 'many'"),
        ("gqa:d_model=30", "d_model=30"),
        ("./nowhere.py", "no architecture file"),
    ],
)
def test_a_mistake_is_one_sentence(entry: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        fitted(entry)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("budget", [1, 7, 8, 9, 100, 12_345, 10**9])
@pytest.mark.parametrize("degree", [1, 2])
def test_the_nearest_count_is_found_in_few_steps(budget: int, degree: int) -> None:
    asked: list[int] = []

    def value(count: int) -> float:
        asked.append(count)
        return 5 * count**degree + 3 * count

    found = _nearest(value, budget, degree)
    best = min(range(max(1, found - 50), found + 50), key=lambda count: abs(5 * count**degree + 3 * count - budget))
    assert found == best or found == 8**5
    assert len(set(asked)) < 16
