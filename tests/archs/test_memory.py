"""How state and activations grow with context, in bytes: what each architecture claims of itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor
from variants import VOCABULARY, build

from archs import Backbone, Tokens

SIZES = (64, 128, 192)
FLOAT = 4

pytestmark = pytest.mark.filterwarnings("ignore:.*runs on its slow backend")


def source(columns: int) -> Tokens:
    return Tokens(torch.randint(3, VOCABULARY, (1, columns), generator=torch.Generator().manual_seed(0)))


@dataclass
class Saved:
    """Counts the storages that autograd keeps for backward, each once, parameters left out."""

    parameters: set[int]
    storages: dict[int, tuple[Tensor, int]] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            # The tensor is kept, so that no later one gets the same address.
            self.storages[storage.data_ptr()] = (tensor, storage.nbytes())
        return tensor

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.storages.values())


def saved_bytes(backbone: Backbone, columns: int) -> int:
    """Bytes saved for the backward pass of one row: `columns` of source, as many of target."""
    saved = Saved({parameter.untyped_storage().data_ptr() for parameter in backbone.parameters()})
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        features = backbone.features(source(columns), source(columns).ids)
    assert features.requires_grad
    return saved.nbytes


def growth(measure) -> float:
    """By how much the second increase of the context costs more than the first: 1 = linear, above = more."""
    small, middle, large = map(measure, SIZES)
    assert middle > small
    return (large - middle) / (middle - small)


LINEAR = {
    "seq2seq without attention": ("seq2seq", {"d_model": 16, "attention": "none"}),
    "mamba": ("mamba", {"d_model": 16, "n_layers": 2}),
    "mamba, not selective": ("mamba", {"d_model": 16, "n_layers": 2, "selective": False}),
    "gqa": ("gqa", {"d_model": 16, "n_layers": 2}),
    "transformer": ("transformer", {"d_model": 16, "n_layers": 2}),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_activations_grow_linearly_without_padding(name, dtype):
    backbone = build(*LINEAR[name], dtype)
    assert growth(lambda columns: saved_bytes(backbone, columns)) == pytest.approx(1.0, abs=0.02)


def test_a_materialised_score_matrix_would_be_seen():
    """The measure tells quadratic from linear: alignments, which are for figures only, hold (B, T, S)."""
    backbone = build("gqa", {"d_model": 16, "n_layers": 1})

    def measure(columns):
        saved = Saved(set())
        with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
            backbone.alignments(source(columns), source(columns).ids)
        return saved.nbytes

    assert growth(measure) > 1.3


def state_bytes(backbone: Backbone, columns: int, decoded: int) -> int:
    """Bytes of the state of one row after `columns` of source and `decoded` of target."""
    with torch.no_grad():
        state = backbone.encode(source(columns))
        if decoded:
            _, state = backbone.decode(state, source(decoded).ids)
    return state.nbytes


COUNTER = 8
"""Bytes of the int64 that counts a cache's tokens."""

STATES = {
    "seq2seq without attention": (
        "seq2seq",
        {"attention": "none", "d_model": 16, "n_layers": 2},
        lambda s, t: 2 * 16 * FLOAT,
    ),
    "seq2seq with lstm": (
        "seq2seq",
        {"attention": "none", "cell": "lstm", "d_model": 16},
        lambda s, t: 2 * 16 * FLOAT,
    ),
    "seq2seq with bahdanau": (
        "seq2seq",
        {"attention": "bahdanau", "d_model": 16},
        lambda s, t: (1 + 3 * s) * 16 * FLOAT,
    ),
    "transformer": (
        "transformer",
        {"d_model": 16, "n_layers": 2},
        lambda s, t: 2 * 2 * (s + t) * 16 * FLOAT + COUNTER,
    ),
    "gqa": (
        "gqa",
        {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2},
        lambda s, t: 2 * 2 * (s + t) * 8 * FLOAT + COUNTER,
    ),
    "gqa with one group": (
        "gqa",
        {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1},
        lambda s, t: 2 * 2 * (s + t) * 4 * FLOAT + COUNTER,
    ),
    "mamba": (
        "mamba",
        {"d_model": 16, "n_layers": 2, "d_state": 4, "d_conv": 4},
        lambda s, t: 2 * 32 * (4 + 3) * FLOAT,
    ),
}


@pytest.mark.parametrize("name", STATES)
def test_state_holds_exactly_what_the_architecture_says(name):
    spec, config, expected = STATES[name]
    backbone = build(spec, config)
    for columns, decoded in ((8, 0), (8, 5), (64, 0), (64, 40), (65, 1)):
        assert state_bytes(backbone, columns, decoded) == expected(columns, decoded)


def test_room_counts_as_allocated():
    backbone = build("gqa", {"d_model": 16, "n_layers": 1, "n_heads": 4, "n_kv_heads": 4})
    with torch.inference_mode():
        with_room, without = (backbone.encode(source(8), room).nbytes for room in (56, 0))
    assert with_room - without == 2 * 56 * 16 * FLOAT


def test_a_recurrent_state_is_kept_in_at_least_float32():
    kept = {}
    for state_dtype in ("float32", "model"):
        backbone = build("mamba", {"d_model": 8, "state_dtype": state_dtype}, torch.bfloat16)
        with torch.no_grad():
            kept[state_dtype] = {leaf.dtype for leaf in backbone.encode(source(4)).leaves() if leaf.shape[-1] == 16}
    assert kept == {"float32": {torch.float32}, "model": {torch.bfloat16}}
