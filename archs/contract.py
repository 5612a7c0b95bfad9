"""The contract that every architecture meets: sources in, features out, with a state in between.

Interchange is at model level, on (source -> target) pairs, so that a Bahdanau encoder-decoder and a decoder-only
transformer are scored on the same tokens. `archs.verify.verify_contract` checks every rule written here.

Legend of shapes, used in all of archs/:
    B  rows of a batch        S  source columns        T  target columns       V  vocabulary
    D  model width            H  heads                 L  columns in general   N  state size of an SSM
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Self, TypeVar

import torch
from torch import Tensor, nn

from archs.registry import own_name


class Tokens(NamedTuple):
    """A batch of sources, LEFT-padded, with at least one real token per row.

    ids: (B, S) int64. mask: (B, S) bool, True = real; None = no padding, known without looking at values.
    """

    ids: Tensor
    mask: Tensor | None = None

    @property
    def start(self) -> Tensor | None:
        """(B,) int64, the first real column of each row; None without padding."""
        return None if self.mask is None else (~self.mask).sum(1)

    @property
    def positions(self) -> Tensor:
        """(B or 1, S) int64, the position of each token counted from the row's first real one; 0 at pads."""
        if self.mask is None:
            return torch.arange(self.ids.shape[1], device=self.ids.device)[None]
        return (self.mask.cumsum(1) - 1).clamp(min=0)


def check_config(config: Any, *sizes: str) -> None:
    """Refuse what no architecture can be built from; every `Config.__post_init__` begins with it.

    sizes: fields that must be at least 1, or None where their default is derived. Raises ValueError naming the field.
    """
    name = own_name(type(config).__module__)
    for size in ("d_model", "n_layers", *sizes):
        value = getattr(config, size)
        if value is not None and value < 1:
            raise ValueError(f"{name}: {size} must be at least 1, got {value}")
    if not 0 <= config.dropout < 1:
        raise ValueError(f"{name}: dropout must be at least 0 and below 1, got {config.dropout}")
    if config.state_dtype not in ("float32", "model"):
        raise ValueError(f"{name}: state_dtype must be 'float32' or 'model', got {config.state_dtype!r}")


class StateConsumed(RuntimeError):
    """A state that a later call wrote in place was used again."""

    def __init__(self) -> None:
        super().__init__("state already consumed; branch with select()")


class Lease:
    """Host-side mark of a state that may be written in place: it belongs to one call, which hands on a new one.

    filled: preallocated columns in use; 0 where a state has none.
    """

    def __init__(self, filled: int = 0) -> None:
        self.filled = filled
        self.spent = False

    def check(self) -> None:
        """Raises StateConsumed once a call has taken the state over."""
        if self.spent:
            raise StateConsumed

    def take(self) -> bool:
        """Whether the state is now the caller's to write: under inference_mode. Raises StateConsumed."""
        self.check()
        self.spent = torch.is_inference_mode_enabled()
        return self.spent


@dataclass(frozen=True)
class State:
    """What decoding needs to know of the past: a value, one frozen dataclass per architecture.

    Fields are tensors with a leading batch axis, other States, tuples of these, or None; and a Lease, in a state that
    may be written in place.
    """

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The same state with `function` applied to every tensor leaf, and a lease of its own.

        Raises StateConsumed for a state that a later call has written.
        """
        fields = {field.name: _map(getattr(self, field.name), function) for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **fields)

    def leaves(self) -> Iterator[Tensor]:
        """Every tensor leaf, each (B, ...)."""
        for field in dataclasses.fields(self):
            yield from _leaves(getattr(self, field.name))

    def select(self, rows: Tensor) -> Self:
        """The state of the given rows, an int64 index (K,) or bool mask (B,): an independent copy."""
        return self.map(lambda leaf: leaf[rows])

    @property
    def nbytes(self) -> int:
        """Bytes held: the unique storages behind the leaves, so that views are free and over-allocation is not."""
        storages = {leaf.untyped_storage()._cdata: leaf.untyped_storage().nbytes() for leaf in self.leaves()}
        return sum(storages.values())


def _map(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, State):
        return value.map(function)
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    if isinstance(value, Lease):
        value.check()
        return Lease(value.filled)
    return value


def usable_room(room: int) -> int:
    """`room` where states may be written in place (under inference_mode), else 0."""
    return room if room and torch.is_inference_mode_enabled() else 0


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, State):
        yield from value.leaves()
    elif isinstance(value, tuple):
        for item in value:
            yield from _leaves(item)


StateT = TypeVar("StateT", bound=State)


class Backbone(nn.Module, ABC, Generic[StateT]):
    """A sequence architecture. `target` always holds the decoder's INPUTS; labels are the task's affair.

    Built as `Backbone(config, vocab_size)`; `config` is the frozen `Config` of the same file.
    """

    readout: nn.Linear
    """Features (..., D) -> logits (..., V)."""

    @abstractmethod
    def encode(self, source: Tokens, room: int = 0) -> StateT:
        """Read the source.

        room: under `torch.inference_mode()`, preallocate that many target positions and let the next call write
        into them (the state is then consumed by that call); ignored elsewhere.
        """

    @abstractmethod
    def advance(self, state: StateT, target: Tensor) -> tuple[Tensor, StateT]:
        """Read target inputs (B, T) -> features (B, T, D) and the state after them; `state` itself is not changed."""

    def features(self, source: Tokens, target: Tensor) -> Tensor:
        """Features (B, T, D) of a whole target; a decoder-only family overrides it with one pass over both."""
        return self.advance(self.encode(source), target)[0]

    def decode(self, state: StateT, target: Tensor) -> tuple[Tensor, StateT]:
        """Logits (B, T, V) of target inputs (B, T), and the state after them."""
        features, state = self.advance(state, target)
        return self.readout(features), state

    def forward(self, source: Tokens, target: Tensor) -> Tensor:
        """Logits (B, T, V) of target inputs (B, T)."""
        return self.readout(self.features(source, target))

    def alignments(self, source: Tokens, target: Tensor) -> Tensor | None:
        """Attention of each target position over the source, (B, T, S) with rows summing to at most 1.

        None where the family has no attention to show.
        """
        return None
