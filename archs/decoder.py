"""One token after another, from a state that every step leaves to the next; on a CUDA device as one graph, replayed.

A small model's step is some hundred launches of a few microseconds each: replaying them as one CUDA graph is worth more
than any of them made faster. A graph repeats what was done to the same memory, so that the state's tensors keep their
places: what a step makes anew is copied over what it was made from. The contract asks for what this rests on: positions
in a state are tensors, and with room a state is written in place (archs/contract.py).
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from archs.contract import Backbone, Lease, State

EAGER = 2
"""Steps before one is captured: in the first, libraries allocate and kernels are compiled."""

Replay = Callable[[], None]


class Decoder:
    """Decodes a token (B,) per row and step, under inference_mode. The state given to it is consumed."""

    def __init__(self, backbone: Backbone[Any], state: State) -> None:
        self._backbone = backbone
        self._state = state
        self._eager = EAGER
        self._graph: _Graph | None = None

    def step(self, token: Tensor) -> Tensor:
        """Logits (B, V) after one more token per row; the next step may overwrite them."""
        if self._graph is None and self._eager == 0:
            self._eager = -1  # once: what cannot be captured now cannot be captured later
            self._graph = _captured(self._backbone, self._state, token)
        if self._graph is not None:
            return self._graph.step(token)
        logits, after = self._backbone.decode(self._state, token[:, None])
        if self._eager > 0 and capturable(token.device) and all(map(_alike, self._state.leaves(), after.leaves())):
            self._eager -= 1
        self._state = after
        return logits[:, -1]

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, an int64 index (K,)."""
        if self._graph is not None and len(rows) == self._graph.rows:
            self._graph.select(rows)
            return
        if self._graph is not None:
            self._state, self._graph, self._eager = self._graph.left(), None, EAGER
        self._state = self._state.select(rows)


def capturable(device: torch.device) -> bool:
    """Whether there are graphs on this device."""
    return device.type == "cuda"


def _alike(old: Tensor, new: Tensor) -> bool:
    return old.shape == new.shape and old.dtype == new.dtype


class _Graph:
    """One step, captured: reads `token` and `state`, and writes `logits` and `state`."""

    def __init__(self, replay: Replay, state: State, columns: int, token: Tensor, logits: Tensor) -> None:
        """columns: that one step fills of a state's preallocated ones."""
        self._replay, self._columns, self._token, self._logits = replay, columns, token, logits
        self._state, self._steps = state, 0

    @property
    def rows(self) -> int:
        return len(self._token)

    def step(self, token: Tensor) -> Tensor:
        """As Decoder.step."""
        self._token.copy_(token)
        self._replay()
        self._steps += 1
        return self._logits

    def select(self, rows: Tensor) -> None:
        """Reorder the rows where they lie."""
        for leaf in self._state.leaves():
            leaf.copy_(leaf[rows])

    def left(self) -> State:
        """The state after all steps so far."""
        if (lease := _lease(self._state)) is not None:
            lease.filled += self._steps * self._columns
        return self._state


def _captured(backbone: Backbone[Any], state: State, token: Tensor) -> _Graph | None:
    """The step from this state on as a graph, or None where it cannot be one, which is said."""
    state = state.map(lambda leaf: leaf)  # with a lease of its own: the given one is unspent if this fails
    given = state.map(lambda leaf: leaf)
    token = token.clone()
    made: list[tuple[Tensor, State]] = []

    def work() -> None:
        logits, after = backbone.decode(given, token[:, None])
        for old, new in zip(state.leaves(), after.leaves(), strict=True):
            if old.data_ptr() != new.data_ptr():
                old.copy_(new)
        made.append((logits[:, -1], after))

    try:
        replay = capture(work)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"a step of {type(backbone).__name__} is no CUDA graph, and runs launch by launch: {reason}", stacklevel=4
        )
        return None
    logits, after = made.pop()
    columns = _filled(after) - _filled(state)
    return _Graph(replay, state, columns, token, logits)


def capture(work: Callable[[], None]) -> Replay:
    """The work, which is not done now, as a CUDA graph. Raises RuntimeError where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    with ExitStack() as stack:
        # What autocast keeps would lie in the graph's memory.
        autocast = torch.is_autocast_enabled("cuda")
        stack.enter_context(torch.autocast("cuda", enabled=autocast, cache_enabled=False))
        stack.enter_context(torch.cuda.graph(graph))
        work()
    return graph.replay


def _filled(state: State) -> int:
    lease = _lease(state)
    return 0 if lease is None else lease.filled


def _lease(state: State) -> Lease | None:
    for field in dataclasses.fields(state):
        value = getattr(state, field.name)
        if isinstance(value, State):
            value = _lease(value)
        if isinstance(value, Lease):
            return value
    return None
