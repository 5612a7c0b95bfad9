"""The decoder is LLaMA's (Touvron et al. 2023) with the groups of Ainslie et al. 2023, by formula."""

from __future__ import annotations

import math

import pytest
import torch
from papers import SOURCE, TARGET, build, logits, on_source, same
from torch import Tensor

import kernels
from archs.gqa import GQA, Config, RotaryPositions, SwiGLU

SIZES = {"d_model": 16, "n_heads": 4, "d_ff": 12, "n_layers": 2}
OPTIONS = [
    {"n_kv_heads": 4},
    {"n_kv_heads": 2},
    {"n_kv_heads": 1, "rope_theta": 50.0, "tied_embeddings": True},
    {"n_kv_heads": 2, "rope_factor": 8.0, "rope_original_context": 16},
]

LLAMA_3_1 = {
    0: 1.0,
    1: 8.14617234e-1,
    16: 3.76060309e-2,
    28: 3.21144599e-3,
    29: 2.16657076e-3,
    30: 1.37189357e-3,
    31: 8.56751413e-4,
    32: 5.24846161e-4,
    33: 3.12693750e-4,
    34: 1.78507813e-4,
    35: 9.55621235e-5,
    48: 6.64786987e-6,
    63: 3.06892599e-7,
}
"""Radians per position of pair i of 64, computed in 40-digit decimals from Llama 3.1's published configuration: theta
500000, factor 8, low 1, high 4, original context 8192. Up to 28 kept, 29 to 34 between, from 35 divided by 8."""


def frequencies(config: Config) -> Tensor:
    return RotaryPositions(config).frequencies(torch.device("cpu"))


def scaled(config: Config, rate: float) -> float:
    """Llama 3.1's rule, case by case over the wavelength."""
    wavelength = 2 * math.pi / rate
    context, low, high = config.rope_original_context, config.rope_low_freq_factor, config.rope_high_freq_factor
    if wavelength < context / high:
        return rate
    if wavelength > context / low:
        return rate / config.rope_factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * rate / config.rope_factor + smooth * rate


def expected_frequencies(config: Config) -> Tensor:
    """theta^(-2i/d) (RoFormer, section 3.2.2), scaled."""
    rates = [config.rope_theta ** (-2 * i / config.head_dim) for i in range(config.head_dim // 2)]
    return torch.tensor([scaled(config, rate) for rate in rates], dtype=torch.float64)


def test_frequencies_are_those_of_llama_3_1():
    config = Config(d_model=128, n_heads=1, n_kv_heads=1, rope_theta=500_000.0, rope_factor=8.0)
    assert (config.rope_low_freq_factor, config.rope_high_freq_factor, config.rope_original_context) == (1, 4, 8192)
    got = frequencies(config)
    assert got.shape == (64,)
    assert {i: got[i].item() for i in LLAMA_3_1} == pytest.approx(LLAMA_3_1, rel=1e-8)
    same(got, expected_frequencies(config))


def test_frequencies_without_scaling_are_roformers():
    config = Config(d_model=64, n_heads=2, rope_theta=10_000.0)
    same(frequencies(config), torch.tensor([10_000.0 ** (-i / 16) for i in range(16)], dtype=torch.float64))


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Each pair (i, i + E/2) of (..., T, E) as a complex number, times e^(i angle), angles (T, E/2)."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * angles)
    return torch.cat([turned.real, turned.imag], -1)


def test_rotation_is_multiplication_by_a_complex_number():
    config = Config(d_model=16, n_heads=2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 2, 7, 8, generator=generator, dtype=torch.float64)
    positions = torch.tensor([0, 1, 2, 5, 40, 1000, 100_000])
    got = kernels.rotary(x, *RotaryPositions(config)(positions[None], torch.float64))
    same(got, turned(x, positions[:, None] * expected_frequencies(config)))


def rms(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean of squares + eps), times a gain (Zhang & Sennrich 2019)."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) / x.shape[-1] + eps) * gain


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """(Swish(x W) * x V) W2 (Shazeer 2020, equation 6)."""
    opened = x @ gate.T
    return (opened / (1 + torch.exp(-opened)) * (x @ up.T)) @ down.T


@pytest.mark.parametrize("size", [1.0, 1e-3])
def test_norm_divides_by_the_root_mean_square(size):
    """Small activations show eps."""
    backbone = build("gqa", **SIZES, norm_eps=1e-5)
    x = size * torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for norm in (backbone.blocks[0].attention_norm, backbone.blocks[0].feed_forward_norm, backbone.norm):
        same(norm(x), rms(x, norm.weight, 1e-5))


def test_feed_forward_is_swiglu():
    feed_forward = build("gqa", **SIZES).blocks[0].feed_forward
    assert isinstance(feed_forward, SwiGLU)
    gate, up = feed_forward.gate_up.weight.chunk(2)
    x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    same(feed_forward(x), swiglu(x, gate, up, feed_forward.down.weight))


def test_feed_forward_is_two_thirds_of_four_times_as_wide():
    """LLaMA, section 2.2; rounded up to a multiple of 4."""
    assert [Config(d_model=width).hidden for width in (96, 128)] == [256, 344]


def attention(block: torch.nn.Module, x: Tensor, config: Config) -> tuple[Tensor, Tensor]:
    """What (L, D) attends to, (L, D), and its weights (Hq, L, L): repeated heads, a materialised softmax."""
    own, size, groups = block.attention, config.head_dim, config.n_heads // config.n_kv_heads
    x = rms(x, block.attention_norm.weight, config.norm_eps)
    angles = torch.arange(len(x))[:, None] * expected_frequencies(config)
    key, value = own.key_value.weight.chunk(2)
    mixed, shown = [], []
    for head in range(config.n_heads):
        group = head // groups
        q = turned(x @ own.query.weight[head * size : (head + 1) * size].T, angles)
        k = turned(x @ key[group * size : (group + 1) * size].T, angles)
        v = x @ value[group * size : (group + 1) * size].T
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        scores = torch.exp((q @ k.T / math.sqrt(size)).masked_fill(future, -torch.inf))
        shown.append(scores / scores.sum(1, keepdim=True))
        mixed.append(shown[-1] @ v)
    return torch.cat(mixed, 1) @ own.out.weight.T, torch.stack(shown)


def read(backbone: GQA, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Features (L, D) of ids (L,), and the attention weights (Hq, L, L) of the last block."""
    x, config = backbone.embedding.weight[ids], backbone.config
    for block in backbone.blocks:
        mixed, shown = attention(block, x, config)
        x = x + mixed
        own = block.feed_forward
        normed = rms(x, block.feed_forward_norm.weight, config.norm_eps)
        x = x + swiglu(normed, *own.gate_up.weight.chunk(2), own.down.weight)
    return rms(x, backbone.norm.weight, config.norm_eps), shown


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_logits_are_those_of_the_formulas(options):
    backbone = build("gqa", **SIZES, **options)

    def of_row(source: Tensor, target: Tensor) -> Tensor:
        features, _ = read(backbone, torch.cat([source, target]))
        return features[len(source) :] @ backbone.readout.weight.T

    same(backbone(SOURCE, TARGET), logits(of_row))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_alignments_are_the_last_blocks_softmax(options):
    backbone = build("gqa", **SIZES, **options)

    def of_row(source: Tensor, target: Tensor) -> Tensor:
        _, shown = read(backbone, torch.cat([source, target]))
        return shown.mean(0)[len(source) :, : len(source)]

    same(backbone.alignments(SOURCE, TARGET), on_source(of_row))
