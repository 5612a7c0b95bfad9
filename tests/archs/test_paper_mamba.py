"""Mamba is that of Gu & Dao 2023: a loop over time computes the same, and it starts where the paper starts it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from papers import SOURCE, TARGET, build, logits, same
from torch import Tensor

import archs
from archs.mamba import Mamba, Mixer

SIZES = {"d_model": 6, "d_inner": 10, "d_state": 3, "d_conv": 3, "dt_rank": 2, "n_layers": 2}
OPTIONS = [{}, {"selective": False}, {"d_conv": 1, "tied_embeddings": True}]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolved(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(L, C) -> (L, C): each channel's own weighted sum of the last W inputs, nothing before the first."""
    width = weight.shape[-1]
    before = torch.cat([x.new_zeros(width - 1, x.shape[1]), x])
    return torch.stack([(before[t : t + width].T * weight[:, 0]).sum(1) + bias for t in range(len(x))])


def selected(mixer: Mixer, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """dt (C,), B and C (C, N) or (1, N) of one input (C,): Algorithm 2, or the fixed ones of Algorithm 1."""
    own, c = mixer.selection, mixer.config
    if not c.selective:
        return torch.log1p(torch.exp(own.dt_bias)), own.B, own.C
    rank, B, C = (own.project.weight @ x).split([c.rank, c.d_state, c.d_state])
    return torch.log1p(torch.exp(own.expand_dt.weight @ rank + own.dt_bias)), B[None], C[None]


def mixed(mixer: Mixer, u: Tensor) -> Tensor:
    """(L, D) -> (L, D), token by token (Figure 3, equation 2)."""
    inner, gate = (u @ mixer.project_in.weight.T).chunk(2, 1)
    A, h, outputs = -torch.exp(mixer.A_log), torch.zeros_like(mixer.A_log), []
    for x in silu(convolved(inner, mixer.conv.weight, mixer.conv.bias)):
        dt, B, C = selected(mixer, x)
        h = torch.exp(dt[:, None] * A) * h + dt[:, None] * B * x[:, None]
        outputs.append((C * h).sum(1) + mixer.D * x)
    return (torch.stack(outputs) * silu(gate)) @ mixer.project_out.weight.T


def rms(x: Tensor, gain: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * gain


def read(backbone: Mamba, ids: Tensor) -> Tensor:
    """Features (L, D) of ids (L,)."""
    x = backbone.embedding.weight[ids]
    for block in backbone.blocks:
        x = x + mixed(block.mixer, rms(x, block.norm.weight))
    return rms(x, backbone.norm.weight)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logits_are_those_of_a_loop_over_time(options):
    backbone = build("mamba", **{**SIZES, **options})

    def of_row(source: Tensor, target: Tensor) -> Tensor:
        return read(backbone, torch.cat([source, target]))[len(source) :] @ backbone.readout.weight.T

    same(backbone(SOURCE, TARGET), logits(of_row))


def test_the_state_is_the_recurrences():
    """After [x], h = dt B x: what one token leaves behind, and the columns that the convolution still needs."""
    backbone = build("mamba", **{**SIZES, "n_layers": 1})
    ids = torch.tensor([[4]])
    state = backbone.encode(archs.Tokens(ids)).layers[0]
    block = backbone.blocks[0]
    u = rms(backbone.embedding.weight[ids[0]], block.norm.weight)
    inner = (u @ block.mixer.project_in.weight.T)[:, : SIZES["d_inner"]]
    x = silu(convolved(inner, block.mixer.conv.weight, block.mixer.conv.bias))[0]
    dt, B, _ = selected(block.mixer, x)
    same(state.hidden[0], (dt * x)[:, None] * B)
    same(state.columns[0], F.pad(inner, (0, 0, SIZES["d_conv"] - 2, 0)).T)


@pytest.fixture(scope="module")
def fresh() -> Mixer:
    torch.manual_seed(0)
    return archs.build("mamba", 16, d_model=128, n_layers=2).blocks[0].mixer


def test_a_starts_as_minus_one_to_minus_n(fresh):
    """S4D-Real (section 3.6): A_n = -n in every channel, counted from 1."""
    expected = -torch.arange(1.0, 17.0).expand(256, 16)
    torch.testing.assert_close(-torch.exp(fresh.A_log), expected)


def test_d_starts_as_one(fresh):
    assert torch.equal(fresh.D, torch.ones(256))


def test_dt_starts_log_uniform_between_a_thousandth_and_a_tenth(fresh):
    """softplus(dt bias) (section 3.6); the quartiles of its logarithm are those of a uniform distribution."""
    dt = F.softplus(fresh.selection.dt_bias)
    assert dt.min() >= 1e-3 * (1 - 1e-5)
    assert dt.max() <= 1e-1 * (1 + 1e-5)
    quartiles = (dt.log().quantile(torch.tensor([0.25, 0.5, 0.75])) - math.log(1e-3)) / math.log(100)
    assert torch.allclose(quartiles, torch.tensor([0.25, 0.5, 0.75]), atol=0.1)


def test_sizes_are_the_papers():
    """Expansion 2, N = 16, convolutions of width 4, rank d_model / 16."""
    config = archs.load("mamba").Config(d_model=768)
    assert (config.channels, config.d_state, config.d_conv, config.rank) == (1536, 16, 4, 48)


@pytest.mark.parametrize("layers", [1, 4])
def test_residual_projections_shrink_with_depth(layers):
    """Linear's own 1 / sqrt(inputs), by 1 / sqrt(layers), as in the released code (GPT-2's rule)."""
    torch.manual_seed(0)
    mixer = archs.build("mamba", 16, d_model=64, n_layers=layers).blocks[0].mixer
    assert mixer.project_out.weight.abs().max().item() == pytest.approx((128 * layers) ** -0.5, rel=0.01)


def test_weight_decay_leaves_the_recurrence_alone(fresh):
    marked = {name for name, parameter in fresh.named_parameters() if getattr(parameter, "_no_weight_decay", False)}
    assert marked == {"A_log", "D", "selection.dt_bias"}
