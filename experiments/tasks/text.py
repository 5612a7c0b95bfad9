"""Byte-level text: read C bytes, continue them by T.

Source: byte-level language modelling as in Al-Rfou et al. 2018, "Character-Level Language Modeling with Deeper
Self-Attention", cast as prefix -> continuation so that encoder-decoders and decoders are scored on the same bytes.
The corpus is any file or folder, by default the source files of the running Python's standard library; its first
90 % train, the next 5 % validate, the last 5 % test, and an example is a window at a random place of its part.

`length` = prefix bytes C. Prefix 0 is pure language modelling: the source is [BOS] alone, which gives an
encoder-decoder nothing to read, so that length is not comparable for those.
Chance: 8 bits per byte, token accuracy 1/256. No solver exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from experiments.tasks import corpus
from experiments.tasks.contract import BOS, FIRST, Examples, Split, Task

PARTS: dict[Split, tuple[float, float]] = {"train": (0.0, 0.9), "validation": (0.9, 0.95), "test": (0.95, 1.0)}
"""Where each split begins and ends, as fractions of the corpus."""


@dataclass(frozen=True, kw_only=True)
class Config(Task):
    """Source: C bytes. Target inputs: BOS and the continuation but its last byte. Labels: the continuation."""

    inputs: ClassVar = "shifted"
    metrics: ClassVar = ("bits_per_byte", "token_accuracy")
    own_splits: ClassVar = True
    shortest: ClassVar = 0

    train_lengths: tuple[int, int] = (128, 128)
    test_lengths: tuple[int, ...] = (32, 128, 256)
    path: str = ""
    """A file or folder; empty = the standard library's source."""
    continuation: int = 128
    """Bytes to predict, T."""
    max_bytes: int = 2**26
    """At most so much of the corpus is read, from its beginning; the record says what was left out."""

    def __post_init__(self) -> None:
        """Reads the corpus, so that what is wrong with it is said before anything runs."""
        super().__post_init__()
        if self.continuation < 1:
            raise ValueError(f"continuation must be at least 1 byte, got {self.continuation}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, got {self.max_bytes}")
        window = self.longest + self.continuation
        for split in PARTS:
            size = len(self._part(split))
            if size < window:
                raise ValueError(
                    f"the data is too short: {split} has {size} bytes, but length {self.longest} with "
                    f"continuation {self.continuation} needs {window}; use shorter lengths or more text"
                )

    @property
    def vocab_size(self) -> int:
        return FIRST + 256

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        return self.draw(rng, n, length, "train")

    def draw(self, rng: np.random.Generator, n: int, length: int, split: Split) -> Examples:
        windows = np.lib.stride_tricks.sliding_window_view(self._part(split), length + self.continuation)
        ids = FIRST + windows[rng.integers(0, len(windows), n)].astype(np.int64)
        begin = np.full((n, 1), BOS)
        target = np.hstack([begin, ids[:, length:-1]])
        return Examples(ids[:, :length] if length else begin, target, ids[:, length:])

    def provenance(self) -> dict[str, Any]:
        text = self._corpus()
        notes = []
        if text.left_out:
            notes.append(f"only the first {len(text.data)} bytes of the text were read, {text.left_out} were left out")
        if min(self.train_lengths[0], *self.test_lengths) == 0:
            notes.append("prefix 0 is pure language modelling, not comparable for encoder-decoders")
        return {"corpus": text.digest, "bytes": len(text.data), "files": text.files, "notes": notes}

    def _corpus(self) -> corpus.Corpus:
        return corpus.read(self.path, self.max_bytes)

    def _part(self, split: Split) -> np.ndarray:
        data = self._corpus().data
        start, stop = (int(fraction * len(data)) for fraction in PARTS[split])
        return data[start:stop]
