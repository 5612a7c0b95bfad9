"""The smallest architecture with all that training meets: a state, dropout, a marked parameter, an alignment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from archs.contract import Backbone, State, Tokens


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes."""

    width: ClassVar[tuple[str, int]] = ("d_model", 8)
    inner: ClassVar[tuple[str, int]] = ("d_model", 1)

    d_model: int = 16
    n_layers: int = 1
    dropout: float = 0.1
    learning_rate: float = 1e-2
    state_dtype: str = "float32"


@dataclass(frozen=True)
class ToyState(State):
    """hidden (B, D) and the running sum (B, D) of the embedded source."""

    hidden: Tensor
    total: Tensor


class Toy(Backbone[ToyState]):
    """A GRU over source ++ target."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.rnn = nn.GRU(config.d_model, config.d_model, batch_first=True)
        self.gain = nn.Parameter(torch.ones(1, config.d_model))
        self.gain._no_weight_decay = True
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(config.d_model)
        self.readout = nn.Linear(config.d_model, vocab_size)

    def encode(self, source: Tokens, room: int = 0) -> ToyState:
        embedded = self.embedding(source.ids)
        return ToyState(self.rnn(self.dropout(embedded))[1][0], embedded.sum(1))

    def advance(self, state: ToyState, target: Tensor) -> tuple[Tensor, ToyState]:
        outputs, hidden = self.rnn(self.dropout(self.embedding(target)), state.hidden[None])
        return self.norm(outputs * self.gain), ToyState(hidden[0], state.total)

    def alignments(self, source: Tokens, target: Tensor) -> Tensor:
        scores = self.embedding(target) @ self.embedding(source.ids).mT
        return scores.softmax(-1)
