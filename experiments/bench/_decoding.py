"""What the benchmarks of decoding share: one token after a context, with the state that it leaves to the next."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from archs.contract import Backbone, State
from archs.decoder import EAGER, Decoder, capturable
from experiments.bench._measure import Work
from experiments.bench._steps import weights

S = TypeVar("S")
ROOM = 400
"""Tokens that are decoded at most while one case is timed."""
CONTEXTS = (1024, 16384)
ROWS = (1, 16)
LAYERS = 2


def one_token(state: S, decode: Callable[[S, Tensor], S], token: Tensor) -> Work:
    """Decodes a token (B, 1) at each call, from the state that the call before has left."""
    states = [state]

    def work() -> None:
        with torch.inference_mode():
            states.append(decode(states.pop(), token))

    return work


def floor(model: nn.Module, state_bytes: float) -> dict[str, float]:
    """Every weight is read once, and so much of states is read or written."""
    return {"copy": 4.0 * weights(model) + state_bytes}


def as_graph(model: Backbone[Any], state: State, token: Tensor) -> dict[str, Work | str]:
    """On a GPU also as generation does it, of a token (B, 1): one CUDA graph, replayed."""
    if not capturable(token.device):
        return {}
    decoder = Decoder(model, state.map(torch.clone))

    def work() -> None:
        with torch.inference_mode():
            decoder.step(token[:, 0])

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(EAGER + 1):
            work()
    return {"ours as one CUDA graph": str(said[0].message) if said else work}
