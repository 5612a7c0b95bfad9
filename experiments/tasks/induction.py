"""Induction heads: what followed the trigger the last time?

Source: Olsson et al. 2022, "In-context Learning and Induction Heads", in the form of Gu and Dao 2023, "Mamba"
(section 4.1.2, Table 11; their code was not released, so the generator follows HazyResearch/safari,
`generate_induction_head`, with one trigger and one token to copy). Train short, score at lengths far beyond.

`length` = source tokens L: random symbols with one trigger and the answer behind it; the target is a second trigger.
Chance: token accuracy = exact match = 1/symbols.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.tasks.contract import FIRST, Examples, Task

TRIGGER = FIRST
SYMBOL = FIRST + 1
"""The first ordinary symbol."""


@dataclass(frozen=True, kw_only=True)
class Config(Task):
    """Symbols are independent and uniform, so is the trigger's place."""

    inputs: ClassVar = "given"
    shortest: ClassVar = 2

    train_lengths: tuple[int, int] = (16, 64)
    test_lengths: tuple[int, ...] = (64, 128, 256, 512, 1024)
    symbols: int = 15
    """Size of the alphabet: with the trigger, the 16 ids of the Mamba paper."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols < 2:
            raise ValueError(f"the vocabulary is too small: expected at least 2 symbols, got {self.symbols}")

    @property
    def vocab_size(self) -> int:
        return SYMBOL + self.symbols

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        source = rng.integers(SYMBOL, self.vocab_size, (n, length))
        place = rng.integers(0, length - 1, (n, 1))
        np.put_along_axis(source, place, TRIGGER, 1)
        return Examples(source, np.full((n, 1), TRIGGER), np.take_along_axis(source, place + 1, 1))

    def oracle(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        place = (source == TRIGGER).argmax(axis=1)[:, None]
        return np.take_along_axis(source, place + 1, 1)
