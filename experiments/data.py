"""Any task -> batches for any backbone; the only place with padding.

Example i of a split lies in block i // 256, and a block is a function of (task, seed, split, block) alone: never of
batch size, workers or architecture. Seed and config enter separately, so that changing which lengths are scored
leaves the training examples as they were.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import lightning
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from archs.contract import Tokens
from experiments.errors import UserError
from experiments.tasks.contract import PAD, UNSCORED, Examples, Split, Task

BLOCK = 256
"""Examples per block."""
SHARES: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2, 3, 4, 5), "validation": (6,), "test": (7,)}
"""The eighths of all examples, by content hash, that belong to each split."""
ROUNDS = 64
"""Draws of 256 candidates for one block; a split that gets its eighth needs about 8."""


class Batch(NamedTuple):
    """Examples as a backbone takes them: sources left-padded, targets and labels right-padded."""

    source: Tokens
    """ids (B, S) int64, mask (B, S) bool or None when no source was padded."""
    target: Tensor
    """Decoder inputs (B, T) int64, PAD where padded."""
    labels: Tensor
    """(B, T) int64, -100 where unscored or padded."""


@functools.lru_cache(maxsize=8)
def block(task: Task, seed: int, split: Split, index: int, length: int | None = None) -> Examples:
    """Examples [256 index, 256 index + 256) of a split, as read-only arrays.

    length: None draws one for the block from `task.train_lengths`; an int gives that length's own stream.
    Raises UserError where the example space is too small to keep the splits apart.
    """
    rng = _generator(seed, split, index, length)
    if length is None:
        shortest, longest = task.train_lengths
        length = int(rng.integers(shortest, longest + 1))
    examples = _draw(task, rng, length, split)
    for array in examples:
        array.setflags(write=False)
    return examples


def rows(task: Task, seed: int, split: Split, start: int, stop: int, length: int | None = None) -> list[Examples]:
    """Examples [start, stop) of a split, one part per block that they lie in."""
    parts = []
    for index in range(start // BLOCK, -(-stop // BLOCK)):
        inside = slice(max(start - index * BLOCK, 0), stop - index * BLOCK)
        parts.append(Examples(*(array[inside] for array in block(task, seed, split, index, length))))
    return parts


def collate(parts: Sequence[Examples]) -> Batch:
    """The rows of all parts as one batch; unpadded, with mask None, where all have one length."""
    source = _pad([part.source for part in parts], PAD, left=True)
    target = _pad([part.target for part in parts], PAD)
    labels = _pad([part.labels for part in parts], UNSCORED)
    return Batch(Tokens(source, _mask(parts)), target, labels)


def batch(task: Task, seed: int, split: Split, index: int, size: int, length: int | None = None) -> Batch:
    """Examples [index size, (index + 1) size) of a split; unpadded where size divides 256 or `length` is given."""
    return collate(rows(task, seed, split, index * size, (index + 1) * size, length))


def fingerprint(task: Task, seed: int) -> str:
    """Hash of a task's name, configuration, provenance and first four training blocks: equal means the same data."""
    described = [task.name, dataclasses.asdict(task), task.provenance()]
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for index in range(4):
        for array in block(task, seed, "train", index):
            digest.update(repr(array.shape).encode())
            digest.update(array.astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def describe(task: Task) -> dict[str, Any]:
    """What a record says of the data beyond its fingerprint, as JSON; `notes` holds sentences for the report."""
    notes = ["training, validation and test share their examples"] if task.shared_splits else []
    own = task.provenance()
    return {
        "task": task.name,
        "vocab_size": task.vocab_size,
        "inputs": task.inputs,
        "metrics": list(task.metrics),
        "shared_splits": task.shared_splits,
        "oracle": type(task).oracle is not Task.oracle,
        **own,
        "notes": notes + own.get("notes", []),
    }


def check(task: Task, seed: int) -> None:
    """Raises UserError if the examples of the shortest lengths, the fewest there are, cannot be kept apart."""
    block(task, seed, "train", 0, task.train_lengths[0])
    block(task, seed, "validation", 0, min(task.test_lengths))
    block(task, seed, "test", 0, min(task.test_lengths))


class Training(IterableDataset[Batch]):
    """The endless training split of a DataModule, from the trainer's global step on; ranks share each batch."""

    def __init__(self, data: DataModule) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        trainer = self.data.trainer
        assert trainer is not None
        share, rest = divmod(self.data.batch_size, trainer.world_size)
        if rest:
            raise UserError(
                f"batch_size must be a multiple of the {trainer.world_size} devices that share it, "
                f"got {self.data.batch_size}"
            )
        for step in itertools.count(trainer.global_step):
            index = step * trainer.world_size + trainer.global_rank
            yield batch(self.data.task, self.data.seed, "train", index, share)


EVALUATED = 8
"""How many times the elements of the largest training batch an evaluation batch holds: no gradients are kept there."""


class Evaluation(Dataset[Batch]):
    """The first `examples` examples of one length, in batches; the last one may be smaller."""

    def __init__(self, data: DataModule, split: Split, length: int, examples: int) -> None:
        self.data, self.split, self.length, self.examples = data, split, length, examples
        room = EVALUATED * data.batch_size * data.task.train_lengths[1] // max(1, length)
        self.batch_size = min(max(1, room), BLOCK)

    def __len__(self) -> int:
        return -(-self.examples // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        start = index * self.batch_size
        stop = min(start + self.batch_size, self.examples)
        return collate(rows(self.data.task, self.data.seed, self.split, start, stop, self.length))


class DataModule(lightning.LightningDataModule):
    """A task for Lightning: one endless training loader, and one loader per test length, in their order.

    batch_size: examples per optimiser step over all devices. val_examples, test_examples: per length.
    """

    def __init__(self, task: Task, *, seed: int, batch_size: int, val_examples: int, test_examples: int) -> None:
        super().__init__()
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.val_examples = val_examples
        self.test_examples = test_examples

    def train_dataloader(self) -> DataLoader[Batch]:
        return DataLoader(Training(self), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation("validation", self.val_examples)

    def test_dataloader(self) -> list[DataLoader[Batch]]:
        return self._evaluation("test", self.test_examples)

    def _evaluation(self, split: Split, examples: int) -> list[DataLoader[Batch]]:
        lengths = self.task.test_lengths
        return [DataLoader(Evaluation(self, split, length, examples), batch_size=None) for length in lengths]


def _generator(seed: int, split: Split, index: int, length: int | None) -> np.random.Generator:
    stream = 0 if length is None else length + 1
    key = (get_args(Split).index(split), stream, index)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def _draw(task: Task, rng: np.random.Generator, length: int, split: Split) -> Examples:
    """256 examples that belong to the split: what does not is drawn again."""
    if task.shared_splits or task.own_splits:
        return _examples(task, rng, length, split)
    kept: list[Examples] = []
    count = 0
    for _ in range(ROUNDS):
        drawn = _examples(task, rng, length, split)
        belongs = np.isin(_eighth(drawn), SHARES[split])
        kept.append(Examples(*(array[belongs] for array in drawn)))
        count += int(belongs.sum())
        if count >= BLOCK:
            return Examples(*(np.concatenate(arrays)[:BLOCK] for arrays in zip(*kept, strict=True)))
    raise UserError(
        f"task {task.name} at length {length} has too few distinct examples: expected 256 for {split} in "
        f"{ROUNDS * BLOCK} draws, got {count}; use longer lengths or a larger vocabulary, or declare shared_splits"
    )


def _examples(task: Task, rng: np.random.Generator, length: int, split: Split) -> Examples:
    drawn = task.draw(rng, BLOCK, length, split)
    if not isinstance(drawn, Examples):
        raise UserError(
            f"task {task.name}: expected sample() to return Examples(source, target, labels), or shifted(source, "
            f"answer) of experiments.tasks.contract, got {type(drawn).__name__}"
        )
    return drawn


def _eighth(examples: Examples) -> np.ndarray:
    """0..7 for each row, from the content of source and target inputs alone: (n,) uint64.

    Multilinear hashing modulo 2^64, whose high bits are strongly universal (Lemire and Kaser, 2014, section 3).
    """
    content = np.hstack([examples.source, examples.target]).astype(np.uint64)
    return (content @ _multipliers(content.shape[1])) >> np.uint64(61)


@functools.lru_cache(maxsize=64)
def _multipliers(columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(2**64, size=columns, dtype=np.uint64)


def _pad(arrays: list[np.ndarray], value: int, left: bool = False) -> Tensor:
    """The rows of all arrays, as wide as the widest: (B, columns) int64."""
    width = max(array.shape[1] for array in arrays)
    sides = [((0, 0), (width - array.shape[1], 0)[:: 1 if left else -1]) for array in arrays]
    padded = [np.pad(array, side, constant_values=value) for array, side in zip(arrays, sides, strict=True)]
    return torch.from_numpy(np.concatenate(padded).astype(np.int64))


def _mask(parts: Sequence[Examples]) -> Tensor | None:
    """(B, S) bool, True at real source tokens; None where no source is shorter than another."""
    if len({part.source.shape[1] for part in parts}) == 1:
        return None
    return _pad([np.ones_like(part.source) for part in parts], 0, left=True).bool()
