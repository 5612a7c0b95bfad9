"""What `copy` and `reverse` share: a string of random symbols in, a string of as many symbols out."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.tasks.contract import EOS, FIRST, Examples, Task, shifted


@dataclass(frozen=True, kw_only=True)
class Transduction(Task):
    """Source: `length` symbols, independent and uniform. Target: `answer` of it, then EOS."""

    inputs: ClassVar = "shifted"

    train_lengths: tuple[int, int] = (4, 16)
    test_lengths: tuple[int, ...] = (4, 8, 12, 16, 20, 24, 32)
    symbols: int = 16
    """Size of the alphabet."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.symbols < 2:
            raise ValueError(
                f"symbols must be at least 2, since one symbol leaves nothing to learn, got {self.symbols}"
            )

    @abstractmethod
    def answer(self, source: np.ndarray) -> np.ndarray:
        """The symbols (n, A) that answer the sources (n, S)."""

    @property
    def vocab_size(self) -> int:
        return FIRST + self.symbols

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        source = rng.integers(FIRST, self.vocab_size, (n, length))
        return shifted(source, self.answer(source))

    def oracle(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        end = np.full((len(source), 1), EOS)
        return np.hstack([self.answer(source), end])
