"""Mamba: selective state space model (Gu & Dao 2023, sections 3.2 to 3.4).

A block projects in, mixes a few neighbours by a causal depthwise convolution, and runs per channel a linear recurrence
h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t + D x_t whose dt, B and C depend on the input: it can choose
what to keep. With `selective: false` they do not, and the recurrence is time-invariant (the paper's ablation).

State: per layer the last d_conv - 1 convolution inputs and the recurrent state h. Its size does not grow with context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import kernels
from archs.contract import Backbone, Lease, State, Tokens, check_config, usable_room
from archs.linear import Linear
from archs.norm import RMSNorm


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and options; names and defaults as in the paper's released models."""

    width: ClassVar[tuple[str, int]] = ("d_model", 8)
    inner: ClassVar[tuple[str, int]] = ("d_inner", 8)

    d_model: int = 128
    n_layers: int = 2
    d_inner: int | None = None
    """Channels of the recurrence; 2 d_model by default."""
    d_state: int = 16
    """N, the state size per channel."""
    d_conv: int = 4
    """Width of the causal convolution."""
    dt_rank: int | None = None
    """Rank of the projection that makes dt; ceil(d_model / 16) by default."""
    dt_min: float = 1e-3
    dt_max: float = 0.1
    selective: bool = True
    """False = B, C and dt do not depend on the input."""
    bias: bool = False
    """Biases in the block's projections in and out, which the released models have not."""
    conv_bias: bool = True
    norm_eps: float = 1e-5
    tied_embeddings: bool = False
    dropout: float = 0.0
    learning_rate: float = 3e-3
    state_dtype: Literal["float32", "model"] = "float32"
    """Where h is kept between calls: at least float32, or the module's own dtype."""

    def __post_init__(self) -> None:
        check_config(self, "d_inner", "d_state", "d_conv", "dt_rank")
        if not 0 < self.dt_min <= self.dt_max:
            raise ValueError(f"mamba: expected 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")

    @property
    def channels(self) -> int:
        """Channels of the recurrence."""
        return self.d_inner or 2 * self.d_model

    @property
    def rank(self) -> int:
        """Rank of the dt projection."""
        return self.dt_rank or math.ceil(self.d_model / 16)


@dataclass(frozen=True)
class LayerState(State):
    """columns: (B, channels, d_conv - 1), the last convolution inputs. hidden: (B, channels, N)."""

    columns: Tensor
    hidden: Tensor


@dataclass(frozen=True)
class MambaState(State):
    """One LayerState per block. A value, unless it holds a lease."""

    layers: tuple[LayerState, ...]
    lease: Lease | None = None


def undecayed(parameter: nn.Parameter) -> nn.Parameter:
    """Mark a parameter that weight decay must leave alone."""
    parameter._no_weight_decay = True  # type: ignore[attr-defined]  # a mark that optimisers look for, as in mamba-ssm
    return parameter


class Selection(nn.Module):
    """Makes dt, B and C of the recurrence from its input (Algorithm 2), or holds them fixed (Algorithm 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels, rank = config.channels, config.rank
        self.dt_bias = undecayed(nn.Parameter(self._initial_dt_bias()))
        if config.selective:
            self.project = Linear(channels, rank + 2 * config.d_state, bias=False)
            self.expand_dt = Linear(rank, channels, bias=False)
            nn.init.uniform_(self.expand_dt.weight, -(rank**-0.5), rank**-0.5)
        else:
            self.B = nn.Parameter(torch.ones(channels, config.d_state))
            self.C = nn.Parameter(torch.randn(channels, config.d_state))

    def _initial_dt_bias(self) -> Tensor:
        """(channels,) inverse softplus of dt in [dt_min, dt_max] (section 3.6), log-uniform as in the released code."""
        low, high = math.log(self.config.dt_min), math.log(self.config.dt_max)
        dt = torch.exp(low + (high - low) * torch.rand(self.config.channels)).clamp(min=1e-4)
        return dt + torch.log(-torch.expm1(-dt))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., channels) -> dt before bias and softplus (..., channels), B and C (..., N) or (channels, N)."""
        if not self.config.selective:
            return torch.zeros_like(x), self.B, self.C
        dt, B, C = self.project(x).split((self.config.rank, self.config.d_state, self.config.d_state), -1)
        return self.expand_dt(dt), B, C


class Mixer(nn.Module):
    """The selective state space layer with its convolution and gate (Figure 3)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.project_in = Linear(config.d_model, 2 * channels, bias=config.bias)
        self.conv = nn.Conv1d(channels, channels, config.d_conv, groups=channels, bias=config.conv_bias)
        self.selection = Selection(config)
        # A = -exp(A_log) starts as -1, -2, ..., -N in every channel (S4D-Real, section 3.6).
        steps = torch.arange(1, config.d_state + 1, dtype=torch.float32).log()
        self.A_log = undecayed(nn.Parameter(steps.repeat(channels, 1)))
        self.D = undecayed(nn.Parameter(torch.ones(channels)))
        self.project_out = Linear(channels, config.d_model, bias=config.bias)
        with torch.no_grad():
            self.project_out.weight.mul_(config.n_layers**-0.5)

    def initial_state(self, rows: int, like: Tensor) -> LayerState:
        """Zeros: nothing read yet."""
        c = self.config
        dtype = torch.promote_types(torch.float32, like.dtype) if c.state_dtype == "float32" else like.dtype
        hidden = like.new_zeros(rows, c.channels, c.d_state, dtype=dtype)
        return LayerState(like.new_zeros(rows, c.channels, c.d_conv - 1), hidden)

    def forward(self, x: Tensor, state: LayerState, mask: Tensor | None) -> tuple[Tensor, LayerState]:
        """(B, L, D) -> (B, L, D) and the state after it; mask (B, L) bool, True = real.

        At pads the convolution reads zeros and dt is 0 (softplus of -inf): then the state passes unchanged.
        """
        x, gate = (half.mT for half in self.project_in.halves(x))  # (B, channels, L), channels side by side
        if mask is not None:
            x = x.masked_fill(~mask[:, None], 0.0)
        x, columns = self._convolve(x, state.columns)
        dt, B, C = self.selection(x.mT)
        if mask is not None:
            dt = dt.masked_fill(~mask[..., None], float("-inf"))
        y, hidden = kernels.selective_scan(
            x,
            dt.mT,
            -torch.exp(self.A_log),
            B.mT if self.config.selective else B,
            C.mT if self.config.selective else C,
            self.D,
            z=gate,
            delta_bias=self.selection.dt_bias,
            delta_softplus=True,
            return_last_state=True,
            initial_state=state.hidden,
        )
        return self.project_out(y.mT), LayerState(columns, hidden.to(state.hidden.dtype))

    def _convolve(self, x: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution of (B, channels, L) after `columns`, and the columns after it."""
        weight, columns = self.conv.weight.squeeze(1), columns.to(x.dtype)
        return kernels.causal_conv1d(
            x, weight, self.conv.bias, initial_states=columns, return_final_states=True, activation="silu"
        )

    def step(self, x: Tensor, state: LayerState, in_place: bool) -> tuple[Tensor, LayerState]:
        """One token (B, D), as by `forward`; in_place: written over `state`, without autograd."""
        x, gate = self.project_in(x).chunk(2, -1)
        x, columns = self._convolve_one(x, state.columns, in_place)
        dt, B, C = self.selection(x)
        if not self.config.selective:  # the same for every row, another for every channel
            B, C = B.expand(len(x), -1, -1), C.expand(len(x), -1, -1)
        rest = (x, dt, -torch.exp(self.A_log), B, C, self.D, gate, self.selection.dt_bias, True)
        if in_place:
            y, hidden = kernels.selective_state_update_(state.hidden, *rest), state.hidden
        else:
            y, hidden = kernels.selective_state_update(state.hidden, *rest)
        return self.project_out(y), LayerState(columns, hidden)

    def _convolve_one(self, x: Tensor, columns: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
        """As `_convolve`, of (B, channels)."""
        if torch.is_grad_enabled():
            x, columns = self._convolve(x[..., None], columns)
            return x.squeeze(-1), columns
        if not in_place:
            columns = columns.to(x.dtype, copy=True)
        weight = self.conv.weight.squeeze(1)
        return kernels.causal_conv1d_update_(x, columns, weight, self.conv.bias, "silu"), columns


class Block(nn.Module):
    """x + mixer(norm(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.mixer = Mixer(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, state: LayerState, mask: Tensor | None, in_place: bool) -> tuple[Tensor, LayerState]:
        """(B, L, D) -> (B, L, D), and the layer's state after it; in_place: `state` may be written."""
        if x.shape[1] == 1 and mask is None:
            mixed, state = self.mixer.step(self.norm(x[:, 0]), state, in_place)
            mixed = mixed[:, None]
        else:
            mixed, state = self.mixer(self.norm(x), state, mask)
        return x + self.dropout(mixed), state


class Mamba(Backbone[MambaState]):
    """Decoder-only stack of Mamba blocks; the source is read as the prefix of the target."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.embedding_dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.n_layers)])
        self.norm = RMSNorm(config.d_model, eps=config.norm_eps)
        self.readout = Linear(config.d_model, vocab_size, bias=False)
        nn.init.normal_(self.embedding.weight, std=config.d_model**-0.5)
        if config.tied_embeddings:
            self.readout.weight = self.embedding.weight

    def _read(
        self, ids: Tensor, state: MambaState | None, mask: Tensor | None, in_place: bool = False
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """Features (B, L, D) of ids (B, L), and the state after them; `state` None = nothing read yet."""
        x = self.embedding_dropout(self.embedding(ids))
        layers = []
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            before = block.mixer.initial_state(len(ids), x) if state is None else state.layers[index]
            x, after = block(x, before, mask, in_place)
            layers.append(after)
        return self.norm(x), tuple(layers)

    def encode(self, source: Tokens, room: int = 0) -> MambaState:
        """Read the source as a prefix. The state has a fixed size: with `room` the next call writes it in place."""
        _, layers = self._read(source.ids, None, source.mask)
        return MambaState(layers, Lease() if usable_room(room) else None)

    def advance(self, state: MambaState, target: Tensor) -> tuple[Tensor, MambaState]:
        """Read T more tokens."""
        in_place = state.lease is not None and state.lease.take()
        features, layers = self._read(target, state, None, in_place)
        return features, MambaState(layers, Lease() if in_place else None)

    def features(self, source: Tokens, target: Tensor) -> Tensor:
        """One pass over source ++ target."""
        mask = source.mask
        if mask is not None:
            mask = F.pad(mask, (0, target.shape[1]), value=True)
        features, _ = self._read(torch.cat([source.ids, target], 1), None, mask)
        return features[:, source.ids.shape[1] :]
