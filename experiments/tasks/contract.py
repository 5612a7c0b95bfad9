"""What a task is: a frozen configuration and pure functions of it; no modules, no padding, no batches.

Ids 0, 1, 2 are PAD, BOS, EOS in every task; a filler is a real token with an id of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from archs.ids import BOS, EOS, FIRST, PAD
from archs.registry import own_name

__all__ = ["BOS", "EOS", "FIRST", "PAD", "UNSCORED", "Examples", "Split", "Task", "choose", "shifted"]

UNSCORED = -100

Split = Literal["train", "validation", "test"]


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
    own_splits: ClassVar[bool] = False
    """`draw` keeps the splits apart by itself, so `experiments.data` need not do so by content hash."""
    shortest: ClassVar[int] = 1
    """The smallest length that makes sense."""

    train_lengths: tuple[int, int]
    """Training lengths, drawn uniformly from this inclusive range, one per block."""
    test_lengths: tuple[int, ...]
    """Lengths of validation and test; those above train_lengths[1] are extrapolation."""

    def __post_init__(self) -> None:
        """Raises ValueError, in one sentence, for lengths that make no sense; subclasses add their own checks."""
        first, last = self.train_lengths
        if not self.shortest <= first <= last:
            raise ValueError(
                f"train_lengths must be [shortest, longest] with {self.shortest} <= shortest <= longest, "
                f"got {list(self.train_lengths)}"
            )
        if not self.test_lengths or min(self.test_lengths) < self.shortest:
            raise ValueError(
                f"test_lengths must hold at least one length, none below {self.shortest}, got {list(self.test_lengths)}"
            )

    @property
    def name(self) -> str:
        """The task's name: that of its file."""
        return own_name(type(self).__module__)

    @property
    def longest(self) -> int:
        """The greatest length in training, validation and test."""
        return max(self.train_lengths[1], *self.test_lengths)

    @property
    @abstractmethod
    def vocab_size(self) -> int: ...

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        """n fresh examples of one length, vectorised; a function of the configuration and of what `rng` gives."""

    def draw(self, rng: np.random.Generator, n: int, length: int, split: Split) -> Examples:
        """n examples for one split; a task whose data is itself split overrides it and sets `own_splits`."""
        return self.sample(rng, n, length)

    def oracle(self, source: np.ndarray, target: np.ndarray) -> np.ndarray | None:
        """The labels (n, T) as a perfect solver gives them; None where no solver exists."""
        return None

    def provenance(self) -> dict[str, Any]:
        """JSON for the record about data that is not generated, such as a digest; `notes`: sentences for the report."""
        return {}

    @property
    def generates(self) -> bool:
        """Scored by greedy generation rather than in one pass."""
        return self.inputs == "shifted" and "exact_match" in self.metrics


def shifted(source: np.ndarray, answer: np.ndarray) -> Examples:
    """Answer tokens (n, A) as a generation task: inputs [BOS, answer], labels [answer, EOS]."""
    edge = np.ones((len(answer), 1), dtype=np.int64)
    return Examples(source, np.hstack([BOS * edge, answer]), np.hstack([answer, EOS * edge]))


def choose(rng: np.random.Generator, n: int, population: int, k: int, weights: np.ndarray | None = None) -> np.ndarray:
    """n rows of k distinct numbers below `population`, in the order drawn: (n, k) int64.

    Without weights every ordered choice is equally likely; with weights (population,) each draw is proportional to
    the weights of what is left. All rows at once, by the exponential race of Efraimidis and Spirakis (2006).
    """
    arrivals = rng.standard_exponential((n, population))
    if weights is not None:
        arrivals /= weights
    first = arrivals.argpartition(k - 1, axis=1)[:, :k]
    order = np.take_along_axis(arrivals, first, 1).argsort(axis=1)
    return np.take_along_axis(first, order, 1)
