"""Alignments show the attention that the logits were computed with."""

from __future__ import annotations

import pytest
import torch
from toys import ragged
from variants import VOCABULARY, build

LENGTHS = (6, 2, 4)


def weights_of(spec: str, config: dict) -> torch.Tensor | None:
    backbone = build(spec, config, torch.float64)
    with torch.no_grad():
        return backbone.alignments(ragged(*LENGTHS, vocabulary=VOCABULARY), torch.full((len(LENGTHS), 3), 5))


@pytest.mark.parametrize(("spec", "config"), [("seq2seq", {"attention": "none"}), ("mamba", {})])
def test_families_without_attention_have_none(spec, config):
    assert weights_of(spec, {"d_model": 8, **config}) is None


CROSS = {
    "bahdanau": ("seq2seq", {"d_model": 8, "attention": "bahdanau"}),
    "luong": ("seq2seq", {"d_model": 8, "attention": "luong"}),
    "transformer": ("transformer", {"d_model": 16}),
    "transformer, pre-norm": ("transformer", {"d_model": 16, "norm": "pre"}),
}


@pytest.mark.parametrize("name", CROSS)
def test_attention_over_the_source_alone_sums_to_one(name):
    weights = weights_of(*CROSS[name])
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(LENGTHS), 3, dtype=torch.float64))


def test_a_decoder_only_family_attends_to_the_target_too():
    weights = weights_of("gqa", {"d_model": 16})
    assert (weights.sum(-1) < 1).all()
    assert (weights.sum(-1) > 0).all()


@pytest.mark.parametrize("name", ["bahdanau", "luong"])
def test_weights_of_a_recurrent_decoder_reproduce_its_logits(name):
    """Replacing the memory by its weighted mean, constant over columns, gives the same first step."""
    backbone = build(*CROSS[name], torch.float64)
    source, target = ragged(*LENGTHS, vocabulary=VOCABULARY), torch.full((len(LENGTHS), 1), 5)
    with torch.no_grad():
        state = backbone.encode(source)
        context = (backbone.alignments(source, target)[..., None] * state.memory[:, None]).sum(2)
        expected, _ = backbone.decode(state, target)
        constant = context.expand_as(state.memory).clone()
        got, _ = backbone.decode(type(state)(state.hidden, state.keys, constant, state.start), target)
    torch.testing.assert_close(got, expected)
