"""The transformer is that of Vaswani et al. 2017: torch's own layers, with the same weights, compute the same."""

from __future__ import annotations

import math

import pytest
import torch
from papers import SOURCE, TARGET, Weights, build, logits, on_source, same, weights
from torch import Tensor, nn

from archs.transformer import Config, sinusoids

SIZES = {"d_model": 12, "n_heads": 3, "d_ff": 20, "n_layers": 2}
OPTIONS = [
    {"norm": "post"},
    {"norm": "pre"},
    {"norm": "post", "tied_embeddings": False},
    {"norm": "pre", "wavelength": 50.0},
]


def position_encoding(count: int, wavelength: float = 10_000.0) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i/d)), PE(pos, 2i+1) = cos(the same) (section 3.5), number by number."""
    width = SIZES["d_model"]
    table = torch.zeros(count, width, dtype=torch.float64)
    for pos in range(count):
        for i in range(width // 2):
            table[pos, 2 * i] = math.sin(pos / wavelength ** (2 * i / width))
            table[pos, 2 * i + 1] = math.cos(pos / wavelength ** (2 * i / width))
    return table


@pytest.mark.parametrize("wavelength", [10_000.0, 50.0])
def test_positions_are_the_papers_sines_and_cosines(wavelength):
    got = sinusoids(torch.arange(30), SIZES["d_model"], wavelength, torch.float64)
    same(got, position_encoding(30, wavelength))


def attention(own: Weights, name: str) -> Weights:
    """Our projections as nn.MultiheadAttention names them."""
    return {
        "in_proj_weight": torch.cat([own[f"{name}.query.weight"], own[f"{name}.key_value.weight"]]),
        "in_proj_bias": torch.cat([own[f"{name}.query.bias"], own[f"{name}.key_value.bias"]]),
        "out_proj.weight": own[f"{name}.out.weight"],
        "out_proj.bias": own[f"{name}.out.bias"],
    }


def layer_weights(own: Weights) -> Weights:
    """The weights of one of our layers as torch's encoder or decoder layer names them."""
    crosses = "cross.out.bias" in own
    found = {f"self_attn.{key}": value for key, value in attention(own, "attention").items()}
    if crosses:
        found |= {f"multihead_attn.{key}": value for key, value in attention(own, "cross").items()}
    for kind in ("weight", "bias"):
        found |= {f"linear{n}.{kind}": own[f"feed_forward.{at}.{kind}"] for n, at in ((1, "up"), (2, "down"))}
        found |= {f"norm{n + 1}.{kind}": own[f"residuals.{n}.norm.{kind}"] for n in range(3 if crosses else 2)}
    return found


class Torchs:
    """The same model from torch's layers; they stay in training mode (dropout 0), which has no fast path."""

    def __init__(self, ours: nn.Module, config: Config) -> None:
        self.ours, self.config = ours, config
        kind = {"dropout": 0.0, "norm_first": config.norm == "pre", "batch_first": True, "dtype": torch.float64}
        sizes = (config.d_model, config.n_heads, config.hidden)
        self.encoder = [nn.TransformerEncoderLayer(*sizes, **kind) for _ in range(config.n_layers)]
        self.decoder = [nn.TransformerDecoderLayer(*sizes, **kind) for _ in range(config.n_layers)]
        for name, layers in (("encoder", self.encoder), ("decoder", self.decoder)):
            for index, layer in enumerate(layers):
                layer.load_state_dict(layer_weights(weights(ours, f"{name}.{index}.")))

    def embed(self, ids: Tensor) -> Tensor:
        """(1, L, D): embeddings times sqrt(d_model) (section 3.4), plus positions."""
        scaled = self.ours.embedding.weight[ids] * self.config.d_model**0.5
        return (scaled + position_encoding(len(ids), self.config.wavelength))[None]

    def final(self, x: Tensor, name: str) -> Tensor:
        """Pre-norm stacks end with a norm of their own, post-norm ones have had theirs."""
        if self.config.norm == "post":
            return x
        own = weights(self.ours, f"{name}_norm.")
        return nn.functional.layer_norm(x, x.shape[-1:], own["weight"], own["bias"])

    def decode(self, source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The encoded source and the decoder's output, (1, L, D) each."""
        memory = self.embed(source)
        for layer in self.encoder:
            memory = layer(memory)
        memory, x = self.final(memory, "encoder"), self.embed(target)
        causal = torch.full((len(target), len(target)), -torch.inf, dtype=torch.float64).triu(1)
        for layer in self.decoder:
            x = layer(x, memory, tgt_mask=causal)
        return memory, self.final(x, "decoder")

    @torch.no_grad()
    def logits(self, source: Tensor, target: Tensor) -> Tensor:
        return self.decode(source, target)[1][0] @ self.ours.readout.weight.T

    @torch.no_grad()
    def cross_weights(self, source: Tensor, target: Tensor) -> Tensor:
        """(T, S): softmax(Q K^T / sqrt(d_k)) of the last layer (section 3.2.1), the mean over its heads."""
        queries: list[Tensor] = []
        attention = self.decoder[-1].multihead_attn
        hook = attention.register_forward_pre_hook(lambda module, inputs: queries.append(inputs[0]))
        memory, _ = self.decode(source, target)
        hook.remove()
        width, size = self.config.d_model, self.config.d_model // self.config.n_heads
        query, key, _ = zip(attention.in_proj_weight.split(width), attention.in_proj_bias.split(width), strict=True)
        q, k = queries[0][0] @ query[0].T + query[1], memory[0] @ key[0].T + key[1]
        heads = zip(q.split(size, 1), k.split(size, 1), strict=True)
        return torch.stack([(q_head @ k_head.T / size**0.5).softmax(1) for q_head, k_head in heads]).mean(0)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logits_are_those_of_torchs_layers(options):
    ours = build("transformer", **SIZES, **options)
    same(ours(SOURCE, TARGET), logits(Torchs(ours, ours.config).logits))


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_alignments_are_the_last_layers_softmax(norm):
    ours = build("transformer", **SIZES, norm=norm)
    same(ours.alignments(SOURCE, TARGET), on_source(Torchs(ours, ours.config).cross_weights))


def test_one_matrix_embeds_and_reads_out():
    tied, untied = (build("transformer", **SIZES, tied_embeddings=tied) for tied in (True, False))
    assert tied.readout.weight is tied.embedding.weight
    assert untied.readout.weight is not untied.embedding.weight


def test_feed_forward_is_four_times_as_wide():
    assert Config(d_model=512).hidden == 2048
