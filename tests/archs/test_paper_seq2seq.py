"""Encoder, bridge, both attentions and decoder are those of their papers: loops over time compute the same."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from papers import SOURCE, TARGET, build, logits, on_source, same, weights
from torch import Tensor

import archs
from archs.seq2seq import Seq2Seq

SIZES = {"d_model": 5, "d_hidden": 4}
VARIANTS = [
    *({"attention": attention, "cell": cell, "n_layers": layers}
      for attention, cell, layers in itertools.product(("none", "bahdanau", "luong"), ("gru", "lstm"), (1, 2))),
    {"attention": "bahdanau", "query_sees_input": False},
    {"attention": "luong", "score": "dot"},
]  # fmt: skip

Hidden = tuple[Tensor, ...]


def gru(own: dict[str, Tensor], layer: int, x: Tensor, hidden: Hidden) -> Hidden:
    """h' = (1 - z) n + z h (Cho et al. 2014), the reset gate applied after the recurrent product as cuDNN has it."""
    (h,) = hidden
    r, z, n = (own[f"weight_ih_l{layer}"] @ x + own[f"bias_ih_l{layer}"]).chunk(3)
    r_h, z_h, n_h = (own[f"weight_hh_l{layer}"] @ h + own[f"bias_hh_l{layer}"]).chunk(3)
    update = torch.sigmoid(z + z_h)
    return ((1 - update) * torch.tanh(n + torch.sigmoid(r + r_h) * n_h) + update * h,)


def lstm(own: dict[str, Tensor], layer: int, x: Tensor, hidden: Hidden) -> Hidden:
    """c' = f c + i g, h' = o tanh(c') (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000)."""
    h, c = hidden
    gates = own[f"weight_ih_l{layer}"] @ x + own[f"bias_ih_l{layer}"]
    i, f, g, o = (gates + own[f"weight_hh_l{layer}"] @ h + own[f"bias_hh_l{layer}"]).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


CELLS = {"gru": gru, "lstm": lstm}


@dataclass(frozen=True)
class Loop:
    """The model from formulas, for one row without padding."""

    ours: Seq2Seq

    def over(self, prefix: str, inputs: Tensor) -> Tensor:
        """One direction of one encoder layer from zeros: (S, I) -> every h, (S, H)."""
        config, own, seen = self.ours.config, weights(self.ours, prefix), []
        hidden: Hidden = (inputs.new_zeros(config.hidden),) * (1 if config.cell == "gru" else 2)
        for x in inputs:
            hidden = CELLS[config.cell](own, 0, x, hidden)
            seen.append(hidden[0])
        return torch.stack(seen)

    def encode(self, source: Tensor) -> tuple[Tensor, list[Hidden]]:
        """Annotations [ahead_j; back_j] (S, 2H), and per layer tanh(W [ahead_S; back_1]) as the decoder's start."""
        x, starts = self.ours.embedding.weight[source], []
        for index, bridge in enumerate(self.ours.bridge.layers):
            ahead = self.over(f"encoder.{index}.forwards.", x)
            back = self.over(f"encoder.{index}.backwards.", x.flip(0)).flip(0)
            start = torch.tanh(bridge.weight @ torch.cat([ahead[-1], back[0]]) + bridge.bias)
            starts.append(tuple(start.split(self.ours.config.hidden)))
            x = torch.cat([ahead, back], 1)
        return x, starts

    def scores(self, query: Tensor, y: Tensor, memory: Tensor) -> Tensor:
        """(S,) of a decoder state (H,) and an input (D,) over annotations (S, 2H)."""
        ours, config = self.ours, self.ours.config
        if config.attention == "bahdanau":  # v^T tanh(W s + U h_j) (appendix A.1.2), with or without the step's input
            asked = ours.query.weight @ query + ours.query.bias
            if config.query_sees_input:
                asked = asked + ours.query_input.weight @ y
            return torch.stack([ours.v @ torch.tanh(asked + ours.key.weight @ h) for h in memory])
        if config.score == "dot":  # s^T h_j, both directions of h_j added
            return torch.stack([query @ (h[: config.hidden] + h[config.hidden :]) for h in memory])
        return torch.stack([query @ ours.key.weight @ h for h in memory])  # s^T W h_j (equation 8)

    def attend(self, query: Tensor, y: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Context (2H,) and weights (S,); nothing without attention."""
        if self.ours.config.attention == "none":
            return memory.new_zeros(0), memory.new_zeros(len(memory))
        exponentials = torch.exp(self.scores(query, y, memory))
        shares = exponentials / exponentials.sum()
        return sum(share * h for share, h in zip(shares, memory, strict=True)), shares

    def decode(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T, V) and attention weights (T, S)."""
        ours, config, own = self.ours, self.ours.config, weights(self.ours, "decoder.")
        memory, layers = self.encode(source)
        found, shown = [], []
        for y in ours.embedding.weight[target]:
            x, context, shares = y, None, None
            if config.attention == "bahdanau":  # asked by the state before the step, fed into it
                context, shares = self.attend(layers[-1][0], y, memory)
                x = torch.cat([y, context])
            for index, hidden in enumerate(layers):
                layers[index] = CELLS[config.cell](own, index, x, hidden)
                x = layers[index][0]
            if context is None:  # asked by the state after the step
                context, shares = self.attend(x, y, memory)
            out = torch.tanh(ours.output.weight @ torch.cat([x, context, y]) + ours.output.bias)
            found.append(ours.readout.weight @ out + ours.readout.bias)
            shown.append(shares)
        return torch.stack(found), torch.stack(shown)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_logits_are_those_of_loops_over_time(variant):
    ours = build("seq2seq", **SIZES, **variant)
    same(ours(SOURCE, TARGET), logits(lambda source, target: Loop(ours).decode(source, target)[0]))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["attention"] != "none"], ids=str)
def test_alignments_are_the_softmax_of_the_scores(variant):
    ours = build("seq2seq", **SIZES, **variant)
    same(ours.alignments(SOURCE, TARGET), on_source(lambda source, target: Loop(ours).decode(source, target)[1]))


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v["attention"] == "none"], ids=str)
def test_without_attention_the_decoder_has_one_fixed_vector(variant):
    """The bridged final states are all that is kept of a source of any length."""
    ours = build("seq2seq", **SIZES, **variant)
    state = ours.encode(SOURCE)
    parts = 1 if variant["cell"] == "gru" else 2
    leaves = list(state.leaves())
    assert [tuple(leaf.shape) for leaf in leaves] == [(3, variant["n_layers"], SIZES["d_hidden"])] * parts
    starts = [Loop(ours).encode(ids[mask])[1] for ids, mask in zip(SOURCE.ids, SOURCE.mask, strict=True)]
    for part, leaf in enumerate(leaves):
        same(leaf, torch.stack([torch.stack([layer[part] for layer in row]) for row in starts]))


def test_the_forget_gate_starts_open():
    """Bias 1 (Jozefowicz et al. 2015); all others start at 0."""
    torch.manual_seed(0)
    decoder = archs.build("seq2seq", 16, d_model=8, cell="lstm").decoder
    bias = decoder.bias_ih_l0 + decoder.bias_hh_l0
    assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16
