"""A backbone whose probabilities are known, and sources for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from archs import Backbone, State, Tokens


@dataclass(frozen=True)
class ChainState(State):
    """hint: (B, V) logits that the source's last token adds to every step."""

    hint: Tensor


class Chain(Backbone[ChainState]):
    """A Markov chain: the logits of the next token are a row of `table` (V, V), plus the source's row of `hints`."""

    def __init__(self, table: Tensor, hints: Tensor | None = None) -> None:
        super().__init__()
        size = len(table)
        self.table = nn.Embedding.from_pretrained(table)
        self.hints = nn.Embedding.from_pretrained(torch.zeros(size, size) if hints is None else hints)
        self.readout = nn.Linear(size, size, bias=False)
        with torch.no_grad():
            self.readout.weight.copy_(torch.eye(size))

    def encode(self, source: Tokens, room: int = 0) -> ChainState:
        return ChainState(self.hints(source.ids[:, -1]))

    def advance(self, state: ChainState, target: Tensor) -> tuple[Tensor, ChainState]:
        return self.table(target) + state.hint[:, None], state


def ragged(*lengths: int, vocabulary: int, seed: int = 0) -> Tokens:
    """A left-padded source with rows of these lengths; mask None where nothing is padded."""
    columns = max(lengths)
    mask = torch.arange(columns) >= columns - torch.tensor(lengths)[:, None]
    ids = torch.randint(3, vocabulary, mask.shape, generator=torch.Generator().manual_seed(seed))
    return Tokens(ids.masked_fill(~mask, 0), None if mask.all() else mask)
