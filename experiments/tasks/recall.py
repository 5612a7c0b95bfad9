"""Multi-query associative recall (MQAR): key-value pairs in the source, some keys asked for in the target.

Source: Arora et al. 2023, "Zoology: Measuring and Improving Recall in Efficient Language Models" (section 4), and its
code, zoology/data/multiquery_ar.py. There one row of ids holds context and queries; here the context is the source
and the query region the target's inputs, each query scored where it stands: key in, value out.

`length` = key-value pairs P: a source of 2 P tokens, a target of 2 P `slots`, P of them scored.
Chance: token accuracy 1/values, or 1/P for a model that answers with some value of the source; exact match at most
1/P!.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from experiments.tasks.contract import FIRST, UNSCORED, Examples, Task, choose

FILLER = FIRST
KEY = FILLER + 1
"""The first key; the values follow the last one."""


@dataclass(frozen=True, kw_only=True)
class Config(Task):
    """Keys and values come from disjoint ranges of ids, each without replacement within an example."""

    inputs: ClassVar = "given"

    train_lengths: tuple[int, int] = (2, 8)
    test_lengths: tuple[int, ...] = (4, 8, 12, 16)
    keys: int = 32
    """Ids that serve as keys; at least the greatest length."""
    values: int = 32
    """Ids that serve as values; at least the greatest length."""
    slots: int = 2
    """Slots per pair, of two tokens each, the first for a query: Zoology has 7 at (64, 4) and 3 at (512, 64)."""
    power: float = 0.01
    """Slot i = 1, 2, ... is taken with probability ~ i^(power - 1): mostly early ones, Zoology's `power_a`."""
    random_filler: bool = False
    """Non-queries are random ids, keys and values included, instead of a filler with an id of its own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.keys, self.values) < self.longest:
            raise ValueError(
                f"the vocabulary is too small: {self.longest} pairs need as many keys and values without replacement, "
                f"got keys {self.keys} and values {self.values}"
            )
        if self.slots < 1:
            raise ValueError(f"slots must be at least 1, so that every query has a slot, got {self.slots}")

    @property
    def vocab_size(self) -> int:
        return KEY + self.keys + self.values

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        keys = KEY + choose(rng, n, self.keys, length)
        values = KEY + self.keys + choose(rng, n, self.values, length)
        source = np.stack([keys, values], axis=2).reshape(n, 2 * length)
        slots = length * self.slots
        queries = 2 * choose(rng, n, slots, length, np.arange(1, slots + 1) ** (self.power - 1))
        target = self._filler(rng, n, 2 * slots)
        labels = np.full_like(target, UNSCORED)
        np.put_along_axis(target, queries, keys, 1)
        np.put_along_axis(labels, queries, values, 1)
        return Examples(source, target, labels)

    def _filler(self, rng: np.random.Generator, n: int, columns: int) -> np.ndarray:
        if self.random_filler:
            return rng.integers(FILLER, self.vocab_size, (n, columns))
        return np.full((n, columns), FILLER)

    def oracle(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The value of every target token that is a key of the source, queried or not; -100 elsewhere."""
        value_of = np.full((len(source), self.vocab_size), UNSCORED)
        np.put_along_axis(value_of, source[:, ::2], source[:, 1::2], 1)
        return np.take_along_axis(value_of, target, 1)
