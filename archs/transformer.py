"""Encoder-decoder transformer of "Attention Is All You Need" (Vaswani et al. 2017).

Sinusoidal positions (section 3.5), multi-head attention (3.2.2), ReLU feed-forward (3.3), post-norm residuals (3.1),
one embedding matrix shared by source, target and readout, scaled by sqrt(d_model) (3.4). Pre-norm is an option.

State: per decoder layer, the keys and values of the encoded source (fixed) and those of the target so far (growing).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from archs.attention import (
    Cache,
    KeyValue,
    Slot,
    angle_dtype,
    attend,
    attention_weights,
    source_mask,
)
from archs.contract import Backbone, Lease, State, Tokens, check_config, usable_room
from archs.linear import Linear

ACTIVATIONS: dict[str, Callable[[Linear, Tensor], Tensor]] = {
    "relu": Linear.rectified,
    "gelu": lambda up, x: F.gelu(up(x)),
    "silu": lambda up, x: F.silu(up(x)),
}
"""Name -> the activation of what a layer makes of its input."""
CHOICES = {"norm": ("post", "pre"), "activation": tuple(ACTIVATIONS), "positions": ("interleaved", "halves")}
"""Field of Config -> what it may be."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and options; defaults are laptop-sized, the paper's base model is 512 / 6 / 8 / 2048."""

    width: ClassVar[tuple[str, int]] = ("d_model", 16)
    inner: ClassVar[tuple[str, int]] = ("d_ff", 4)

    d_model: int = 128
    n_layers: int = 2
    """Encoder layers."""
    n_decoder_layers: int | None = None
    """As many as encoder layers by default."""
    n_heads: int = 8
    d_ff: int | None = None
    """Hidden width of the feed-forward; 4 d_model by default."""
    norm: Literal["post", "pre"] = "post"
    activation: Literal["relu", "gelu", "silu"] = "relu"
    """Between the two matrices of the feed-forward."""
    wavelength: float = 10_000.0
    """Base of the position encodings (section 3.5): the longest period is 2 pi times this. A shorter one tells the
    neighbours of short sequences apart more sharply."""
    positions: Literal["interleaved", "halves"] = "interleaved"
    """Sines and cosines by turns, as in the paper; or all sines first, as in tensor2tensor and Marian."""
    scaled_embeddings: bool = True
    """False = not multiplied by sqrt(d_model)."""
    source_vocab_size: int | None = None
    """Sources have an embedding of their own, of so many tokens; by default that of the target."""
    readout_bias: bool = False
    tied_embeddings: bool = True
    dropout: float = 0.0
    learning_rate: float = 1e-3
    state_dtype: Literal["float32", "model"] = "float32"
    """No recurrent state is kept here: the cache has the dtype of its keys."""

    def __post_init__(self) -> None:
        check_config(self, "n_heads", "d_ff", "n_decoder_layers", "source_vocab_size")
        if self.d_model % self.n_heads or self.d_model % 2:
            raise ValueError(
                f"transformer: d_model={self.d_model} must be even and a multiple of n_heads={self.n_heads}; "
                f"choose d_model as a multiple of {math.lcm(2, self.n_heads)}"
            )
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"transformer: {name} must be {' or '.join(map(repr, known))}, got {getattr(self, name)!r}"
                )
        if self.wavelength <= 0:
            raise ValueError(f"transformer: wavelength must be positive, got {self.wavelength}")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward."""
        return self.d_ff or 4 * self.d_model

    @property
    def decoder_layers(self) -> int:
        return self.n_decoder_layers or self.n_layers


@dataclass(frozen=True)
class TransformerState(State):
    """memory: (keys, values) (B, H, S, E) of the source per layer; start: (B,) its first real column; target: cache."""

    memory: tuple[KeyValue, ...]
    start: Tensor | None
    target: Cache


def sinusoids(positions: Tensor, width: int, wavelength: float, dtype: torch.dtype, halves: bool = False) -> Tensor:
    """Position encodings (..., D) of int64 positions (...): sines at even, cosines at odd features (section 3.5).

    halves: sines in the first, cosines in the second half of the features instead.
    """
    device = positions.device
    exponents = torch.arange(0, width, 2, device=device, dtype=angle_dtype(device)) / width
    angles = positions[..., None] * wavelength**-exponents
    waves = torch.stack([angles.sin(), angles.cos()], -2 if halves else -1)
    return waves.flatten(-2).to(dtype)


class MultiHead(nn.Module):
    """Multi-head attention with separate projections of queries and of keys and values."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.query = Linear(config.d_model, config.d_model)
        self.key_value = Linear(config.d_model, 2 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def queries(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, H, T, E)."""
        return self._split(self.query(x))

    def _split(self, x: Tensor) -> Tensor:
        return rearrange(x, "b l (h e) -> b h l e", h=self.config.n_heads)

    def keys_values(self, x: Tensor) -> KeyValue:
        """(B, L, D) -> keys and values (B, H, L, E)."""
        keys, values = self.key_value.halves(x)
        return self._split(keys), self._split(values)

    def _drop(self) -> float:
        return self.config.dropout if self.training else 0.0

    def causal(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Masked self-attention, back to (B, T, D)."""
        return self._join(attend(query, keys, values, mask, self._drop()))

    def full(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention over all real source columns, back to (B, T, D)."""
        return self._join(attend(query, keys, values, mask, self._drop(), causal=False))

    def _join(self, heads: Tensor) -> Tensor:
        return self.out(rearrange(heads, "b h t e -> b t (h e)"))


class Residual(nn.Module):
    """A sublayer's residual connection: norm(x + f(x)), or x + f(norm(x)) with pre-norm."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.pre = config.norm == "pre"

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        if self.pre:
            return x + self.dropout(sublayer(self.norm(x)))
        return self.norm(x + self.dropout(sublayer(x)))


class FeedForward(nn.Module):
    """Position-wise feed-forward (section 3.3)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.hidden)
        self.down = Linear(config.hidden, config.d_model)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up, x))


class EncoderLayer(nn.Module):
    """Self-attention over the whole source, then feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = MultiHead(config)
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList([Residual(config) for _ in range(2)])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """(B, S, D) -> (B, S, D); mask of `source_mask`."""
        attention = self.attention
        x = self.residuals[0](x, lambda y: attention.full(attention.queries(y), *attention.keys_values(y), mask))
        return self.residuals[1](x, self.feed_forward)


class DecoderLayer(nn.Module):
    """Masked self-attention, attention over the source, feed-forward."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = MultiHead(config)
        self.cross = MultiHead(config)
        self.feed_forward = FeedForward(config)
        self.residuals = nn.ModuleList([Residual(config) for _ in range(3)])

    def _past(self, x: Tensor, slot: Slot, index: int) -> tuple[Tensor, KeyValue]:
        """The first sublayer: masked self-attention, and the keys and values of the target so far."""
        written: list[KeyValue] = []

        def attention(y: Tensor) -> Tensor:
            written.append(slot.write(index, *self.attention.keys_values(y)))
            return self.attention.causal(self.attention.queries(y), *written[0], slot.mask)

        return self.residuals[0](x, attention), written[0]

    def forward(
        self, x: Tensor, slot: Slot, index: int, memory: KeyValue, memory_mask: Tensor | None
    ) -> tuple[Tensor, KeyValue]:
        """(B, T, D) -> (B, T, D), and the keys and values of the target so far."""
        x, written = self._past(x, slot, index)
        x = self.residuals[1](x, lambda y: self.cross.full(self.cross.queries(y), *memory, memory_mask))
        return self.residuals[2](x, self.feed_forward), written

    def cross_weights(self, x: Tensor, slot: Slot, index: int, memory: KeyValue, mask: Tensor | None) -> Tensor:
        """Attention of (B, T, D) over the source, averaged over heads: (B, T, S)."""
        x, _ = self._past(x, slot, index)
        residual = cast(Residual, self.residuals[1])
        query = self.cross.queries(residual.norm(x) if residual.pre else x)
        return attention_weights(query, memory[0], mask).mean(1)


class Transformer(Backbone[TransformerState]):
    """The encoder-decoder transformer."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        own = config.source_vocab_size
        self.source_embedding = nn.Embedding(own, config.d_model) if own else None
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList([EncoderLayer(config) for _ in range(config.n_layers)])
        self.decoder = nn.ModuleList([DecoderLayer(config) for _ in range(config.decoder_layers)])
        final = nn.LayerNorm if config.norm == "pre" else nn.Identity
        self.encoder_norm = final(config.d_model)
        self.decoder_norm = final(config.d_model)
        self.readout = Linear(config.d_model, vocab_size, bias=config.readout_bias)
        self._initialise()
        if config.tied_embeddings:
            self.readout.weight = self.embedding.weight

    def _initialise(self) -> None:
        """Xavier matrices, zero biases; embeddings of unit norm, which `_place` scales by sqrt(d_model)."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)

    @property
    def _decoder_layers(self) -> list[DecoderLayer]:
        return cast(list[DecoderLayer], list(self.decoder))

    def _place(self, x: Tensor, positions: Tensor) -> Tensor:
        """Embeddings (B, L, D), scaled, with their positions (B, L) added."""
        c = self.config
        if c.scaled_embeddings:
            x = x * math.sqrt(c.d_model)
        return self.embedding_dropout(
            x + sinusoids(positions, c.d_model, c.wavelength, x.dtype, halves=c.positions == "halves")
        )

    def encode(self, source: Tokens, room: int = 0) -> TransformerState:
        """Encode the source once; `room` preallocates target columns."""
        rows, columns = source.ids.shape
        room = usable_room(room)
        mask = source_mask(source.start, columns)
        x = self._place((self.source_embedding or self.embedding)(source.ids), source.positions)
        for layer in self.encoder:
            x = layer(x, mask)
        encoded = self.encoder_norm(x)
        memory = tuple(layer.cross.keys_values(encoded) for layer in self._decoder_layers)
        return TransformerState(memory, source.start, self._cache(memory[0][0], rows, room))

    def _cache(self, like: Tensor, rows: int, room: int) -> Cache:
        """An empty target cache with `room` columns."""
        empty = like.new_zeros(rows, self.config.n_heads, room, self.config.d_model // self.config.n_heads)
        length = torch.zeros(rows, dtype=torch.int64, device=like.device)
        layers = tuple((empty.clone(), empty.clone()) for _ in range(self.config.decoder_layers))
        return Cache(layers, length, lease=Lease(0) if room else None)

    def advance(self, state: TransformerState, target: Tensor) -> tuple[Tensor, TransformerState]:
        """Decode T more inputs, attending to the source and to the target so far."""
        count = target.shape[1]
        slot = state.target.claim(count)
        x = self._place(self.embedding(target), state.target.positions(count))
        mask = source_mask(state.start, state.memory[0][0].shape[2])
        layers = []
        for index, layer in enumerate(self._decoder_layers):
            x, written = layer(x, slot, index, state.memory[index], mask)
            layers.append(written)
        cache = slot.close(layers, count)
        return self.decoder_norm(x), TransformerState(state.memory, state.start, cache)

    def alignments(self, source: Tokens, target: Tensor) -> Tensor:
        """Weights of the last layer's attention over the source, averaged over its heads."""
        state = self.encode(source)
        slot = state.target.claim(target.shape[1])
        x = self._place(self.embedding(target), state.target.positions(target.shape[1]))
        mask = source_mask(state.start, source.ids.shape[1])
        for index, layer in enumerate(self._decoder_layers[:-1]):
            x, _ = layer(x, slot, index, state.memory[index], mask)
        return self._decoder_layers[-1].cross_weights(x, slot, -1, state.memory[-1], mask)
