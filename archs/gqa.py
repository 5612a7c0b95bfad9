"""Decoder-only transformer of the LLaMA kind with grouped-query attention.

Touvron et al. 2023 (LLaMA, section 2.2): pre-norm RMSNorm, SwiGLU, rotary positions, no biases. Ainslie et al. 2023
(GQA, section 2.2): `n_kv_heads` groups of query heads share keys and values; as many groups as heads is multi-head
attention, one group is multi-query attention. The source is read as the prefix of the target.

State: the keys and values of the grouped heads, one column per token read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

import kernels
from archs.attention import (
    Cache,
    KeyValue,
    Slot,
    angle_dtype,
    attend,
    attention_weights,
    causal_mask,
    reserve,
)
from archs.contract import Backbone, Lease, Tokens, check_config, usable_room
from archs.linear import Linear
from archs.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and options; defaults are laptop-sized."""

    width: ClassVar[tuple[str, int]] = ("d_model", 16)
    inner: ClassVar[tuple[str, int]] = ("d_ff", 4)

    d_model: int = 128
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    """Groups of query heads: n_heads = multi-head, 1 = multi-query."""
    d_head: int | None = None
    """Width of a head; d_model / n_heads by default."""
    d_ff: int | None = None
    """Hidden width of SwiGLU; by default 8/3 d_model rounded up to a multiple of 4."""
    rope_theta: float = 10_000.0
    rope_factor: float = 1.0
    """Frequencies are divided by this: the low ones as in Llama 3.1, or all of them; 1 = off."""
    rope_scaling: Literal["low", "all"] = "low"
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_context: int = 8192
    norm_eps: float = 1e-5
    attention_bias: bool = False
    """Biases in the four projections of attention, which LLaMA has not."""
    mlp_bias: bool = False
    tied_embeddings: bool = False
    dropout: float = 0.0
    learning_rate: float = 2e-3
    state_dtype: Literal["float32", "model"] = "float32"
    """No recurrent state is kept here: the cache has the dtype of its keys."""

    def __post_init__(self) -> None:
        check_config(self, "n_heads", "n_kv_heads", "d_head", "d_ff", "rope_original_context")
        if self.d_head is not None and self.d_head % 2:
            raise ValueError(f"gqa: d_head must be even, got {self.d_head}: rotary positions turn pairs of features")
        if self.d_head is None and (self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2):
            raise ValueError(
                f"gqa: d_model={self.d_model} must split into n_heads={self.n_heads} heads of even width; "
                f"choose d_model as a multiple of {2 * self.n_heads}, or set d_head"
            )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"gqa: n_heads={self.n_heads} must be a multiple of n_kv_heads={self.n_kv_heads}; choose a divisor"
            )
        if min(self.rope_theta, self.rope_factor) <= 0:
            raise ValueError(
                f"gqa: rope_theta and rope_factor must be positive, got {self.rope_theta} and {self.rope_factor}"
            )
        if self.rope_scaling not in ("low", "all"):
            raise ValueError(f"gqa: rope_scaling must be 'low' or 'all', got {self.rope_scaling!r}")
        if self.rope_low_freq_factor >= self.rope_high_freq_factor:
            raise ValueError(
                f"gqa: rope_low_freq_factor must be below rope_high_freq_factor, got {self.rope_low_freq_factor} "
                f"and {self.rope_high_freq_factor}"
            )

    @property
    def head_dim(self) -> int:
        return self.d_head or self.d_model // self.n_heads

    @property
    def hidden(self) -> int:
        """Width of SwiGLU."""
        return self.d_ff or 4 * math.ceil(2 * self.d_model / 3)


class RotaryPositions(nn.Module):
    """Rotary position embedding (Su et al. 2021, section 3.2.2).

    Feature i is paired with i + head_dim / 2, as in GPT-NeoX and Hugging Face's LLaMA; Meta's LLaMA pairs neighbours,
    which is the same model with the rows of the projections in another order.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config

    def frequencies(self, device: torch.device) -> Tensor:
        """(head_dim / 2,) radians per position, scaled as Meta's released Llama 3.1 does, or linearly."""
        c = self.config
        exponents = torch.arange(0, c.head_dim, 2, device=device, dtype=angle_dtype(device)) / c.head_dim
        rates = c.rope_theta**-exponents
        if c.rope_scaling == "all" or c.rope_factor == 1.0:
            return rates / c.rope_factor
        turns = c.rope_original_context * rates / (2 * math.pi)
        kept = (turns - c.rope_low_freq_factor) / (c.rope_high_freq_factor - c.rope_low_freq_factor)
        kept = kept.clamp(0, 1)
        return rates * (kept + (1 - kept) / c.rope_factor)

    def forward(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, T, head_dim / 2) of int64 positions (B, T)."""
        angles = positions[:, None, :, None] * self.frequencies(positions.device)
        return angles.cos().to(dtype), angles.sin().to(dtype)


def linear(inputs: int, outputs: int, layers: int = 1, bias: bool = False) -> Linear:
    """Normal weights of variance 1 / (inputs * layers), `layers` > 1 for additions to the residual; bias zero."""
    module = Linear(inputs, outputs, bias=bias)
    nn.init.normal_(module.weight, std=(inputs * layers) ** -0.5)
    if bias:
        nn.init.zeros_(module.bias)
    return module


class Attention(nn.Module):
    """Grouped-query attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        heads, bias = config.n_heads * config.head_dim, config.attention_bias
        self.query = linear(config.d_model, heads, bias=bias)
        self.key_value = linear(config.d_model, 2 * config.n_kv_heads * config.head_dim, bias=bias)
        self.out = linear(heads, config.d_model, layers=2 * config.n_layers, bias=bias)

    def project(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) -> query (B, Hq, T, E), key and value (B, H, T, E), the first two rotated."""
        parts = self.query(x), *self.key_value.halves(x)
        query, key, value = (rearrange(part, "b t (h e) -> b h t e", e=self.config.head_dim) for part in parts)
        return kernels.rotary(query, *rotation), kernels.rotary(key, *rotation), value

    def mix(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of the queries, back to (B, T, D)."""
        heads = attend(query, keys, values, mask, self.config.dropout if self.training else 0.0)
        return self.out(rearrange(heads, "b h t e -> b t (h e)"))


class SwiGLU(nn.Module):
    """Gated feed-forward (Shazeer 2020, equation 6)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_up = linear(config.d_model, 2 * config.hidden, bias=config.mlp_bias)
        self.down = linear(config.hidden, config.d_model, layers=2 * config.n_layers, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(kernels.swiglu(self.gate_up(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.feed_forward = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self, x: Tensor, rotation: tuple[Tensor, Tensor], mask: Tensor | None, slot: Slot | None, index: int
    ) -> tuple[Tensor, KeyValue]:
        """(B, T, D) -> (B, T, D), and this layer's keys and values; `slot` holds the past, None = there is none."""
        query, keys, values = self.attention.project(self.attention_norm(x), rotation)
        if slot is not None:
            keys, values = slot.write(index, keys, values)
        x = x + self.dropout(self.attention.mix(query, keys, values, mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x))), (keys, values)


class GQA(Backbone[Cache]):
    """LLaMA-style decoder with grouped-query attention."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.rotary = RotaryPositions(config)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.readout = Linear(config.d_model, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        nn.init.normal_(self.readout.weight, std=config.d_model**-0.5)
        if config.tied_embeddings:
            self.readout.weight = self.embedding.weight

    def _read(
        self, ids: Tensor, positions: Tensor, mask: Tensor | None, slot: Slot | None = None, room: int = 0
    ) -> tuple[Tensor, list[KeyValue]]:
        """Features (B, T, D) of (B, T) tokens, and every layer's keys and values with `room` columns to spare."""
        x = self.embedding_dropout(self.embedding(ids))
        rotation = self.rotary(positions, x.dtype)
        layers = []
        for index, block in enumerate(self.blocks):
            x, (keys, values) = block(x, rotation, mask, slot, index)
            layers.append((reserve(keys, room), reserve(values, room)))
        return self.norm(x), layers

    def encode(self, source: Tokens, room: int = 0) -> Cache:
        """Read the source as a prefix: a cache of S columns, plus `room` under inference_mode."""
        rows, columns = source.ids.shape
        room = usable_room(room)
        mask = causal_mask(columns, columns, source.start, source.ids.device)
        _, layers = self._read(source.ids, source.positions, mask, room=room)
        length = torch.full((rows,), columns, device=source.ids.device)
        if source.start is not None:
            length = length - source.start
        if room:
            return Cache(tuple(layers), length, source.start, Lease(columns))
        # The values are a view of the joint projection, which would keep the unrotated keys alive.
        return Cache(tuple((keys, values.clone()) for keys, values in layers), length, source.start)

    def advance(self, state: Cache, target: Tensor) -> tuple[Tensor, Cache]:
        """Read T more tokens over the cached columns."""
        count = target.shape[1]
        slot = state.claim(count)
        features, layers = self._read(target, state.positions(count), slot.mask, slot)
        return features, slot.close(layers, count)

    def _joined(self, source: Tokens, target: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Ids and positions (B, S + T) of source ++ target, and the causal mask over them."""
        ids = torch.cat([source.ids, target], 1)
        after = source.positions[:, -1:] + 1 + torch.arange(target.shape[1], device=target.device)
        mask = causal_mask(ids.shape[1], ids.shape[1], source.start, ids.device)
        return ids, torch.cat([source.positions, after], 1), mask

    def features(self, source: Tokens, target: Tensor) -> Tensor:
        """One pass over source ++ target."""
        features, _ = self._read(*self._joined(source, target))
        return features[:, source.ids.shape[1] :]

    def alignments(self, source: Tokens, target: Tensor) -> Tensor:
        """Weights on the source columns, averaged over the heads of the last layer."""
        ids, positions, mask = self._joined(source, target)
        x = self.embedding(ids)
        rotation = self.rotary(positions, x.dtype)
        for index, block in enumerate(self.blocks[:-1]):
            x, _ = block(x, rotation, mask, None, index)
        last = self.blocks[-1]
        assert isinstance(last, Block)
        query, keys, _ = last.attention.project(last.attention_norm(x), rotation)
        if mask is None:
            mask = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).tril()
        columns = source.ids.shape[1]
        return attention_weights(query, keys, mask).mean(1)[:, columns:, :columns]
