"""Small backbones of every kind, as the tests of archs/ share them."""

from __future__ import annotations

import itertools
from typing import Any

import torch

import archs

VOCABULARY = 16
TINY: dict[str, Any] = {"d_model": 16, "n_layers": 1}

NAMED: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {"d_model": 16}) for name in archs.names()}
"""Every architecture as it comes, in width 16."""

SEQ2SEQ = {
    f"seq2seq-{attention}-{cell}-{layers}": (
        "seq2seq",
        {"d_model": 8, "attention": attention, "cell": cell, "n_layers": layers, "dropout": 0.1},
    )
    for attention, cell, layers in itertools.product(("none", "bahdanau", "luong"), ("gru", "lstm"), (1, 2))
}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "seq2seq-bahdanau-blind-query": ("seq2seq", {**TINY, "attention": "bahdanau", "query_sees_input": False}),
    "seq2seq-luong-dot": ("seq2seq", {**TINY, "attention": "luong", "score": "dot", "d_hidden": 12}),
    "transformer-pre": ("transformer", {**TINY, "norm": "pre", "dropout": 0.1}),
    "transformer-untied": ("transformer", {**TINY, "tied_embeddings": False}),
    "transformer-marian": (
        "transformer",
        {
            **TINY,
            "n_decoder_layers": 2,
            "activation": "silu",
            "positions": "halves",
            "scaled_embeddings": False,
            "source_vocab_size": VOCABULARY,
            "readout_bias": True,
        },
    ),
    "gqa-multi-head": ("gqa", {**TINY, "n_kv_heads": 4}),
    "gqa-multi-query": ("gqa", {**TINY, "n_kv_heads": 1, "dropout": 0.1}),
    "gqa-tied": ("gqa", {**TINY, "tied_embeddings": True}),
    "gqa-rope-scaled": ("gqa", {**TINY, "rope_factor": 8.0, "rope_original_context": 16}),
    "gqa-rope-scaled-linearly": ("gqa", {**TINY, "rope_factor": 4.0, "rope_scaling": "all"}),
    "gqa-biases": ("gqa", {**TINY, "attention_bias": True, "mlp_bias": True, "d_head": 6}),
    "mamba-biases": ("mamba", {**TINY, "bias": True, "conv_bias": False}),
    "mamba-not-selective": ("mamba", {**TINY, "selective": False}),
    "mamba-model-dtype": ("mamba", {**TINY, "state_dtype": "model", "dropout": 0.1}),
    "mamba-no-conv": ("mamba", {**TINY, "d_conv": 1}),
}

ONE_OF_EACH = {
    "seq2seq-none": ("seq2seq", {**TINY, "attention": "none"}),
    "seq2seq-luong": ("seq2seq", {**TINY, "attention": "luong", "cell": "lstm"}),
    **{name: (name, TINY) for name in archs.names()},
}
"""One small backbone of each kind of state."""


def build(spec: str, config: dict[str, Any], dtype: torch.dtype = torch.float32) -> archs.Backbone:
    """A reproducible backbone in eval mode."""
    torch.manual_seed(0)
    return archs.build(spec, VOCABULARY, **config).to(dtype).eval()
