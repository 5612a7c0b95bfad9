"""What a task is: a frozen configuration and pure functions of it; no modules, no padding, no batches.

Ids 0, 1, 2 are PAD, BOS, EOS in every task; a filler is a real token with an id of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

PAD, BOS, EOS = 0, 1, 2
FIRST = 3
"""The first id that is a task's own."""
UNSCORED = -100


class Examples(NamedTuple):
    """Rows of one length: source (n, S), target (n, T) decoder inputs, labels (n, T), -100 where unscored; int64."""

    source: np.ndarray
    target: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """Base of every task's `Config`. `length` is the task's own measure of difficulty, documented by each."""

    inputs: ClassVar[Literal["shifted", "given"]]
    """shifted: labels fed back, scored by greedy generation. given: the task's own inputs, scored in one pass."""
    metrics: ClassVar[tuple[str, ...]] = ("token_accuracy", "exact_match")
    """The first is the headline. Known: token_accuracy, exact_match, bits_per_byte (lower is better)."""
    shared_splits: ClassVar[bool] = False
    """The example space is too small, or meant, to be shared between the splits."""

    train_lengths: tuple[int, int]
    """Training lengths, drawn uniformly from this inclusive range, one per block."""
    test_lengths: tuple[int, ...]
    """Lengths of validation and test; those above train_lengths[1] are extrapolation."""

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        """n fresh examples of one length, vectorised."""

    def oracle(self, source: np.ndarray, target: np.ndarray) -> np.ndarray | None:
        """The labels (n, T) as a perfect solver gives them; None where no solver exists."""
        return None

    @property
    def generates(self) -> bool:
        """Scored by greedy generation rather than in one pass."""
        return self.inputs == "shifted" and "exact_match" in self.metrics


def shifted(source: np.ndarray, answer: np.ndarray) -> Examples:
    """Answer tokens (n, A) as a generation task: inputs [BOS, answer], labels [answer, EOS]."""
    edge = np.ones((len(answer), 1), dtype=np.int64)
    return Examples(source, np.hstack([BOS * edge, answer]), np.hstack([answer, EOS * edge]))
