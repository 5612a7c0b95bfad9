"""A training step of mamba against mambapy's, and against the sum of the floors of what it consists of.

Then beside a step of our gqa, whose attention is torch's fastest, at growing lengths: where does the one overtake the
other?
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import archs
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, own_step_over, random_ids, step

WIDTH, LAYERS, STATES = 128, 2, 16


def cases(device: torch.device) -> Iterator[Case]:
    """Two rows of 4096 tokens; then one row of ever more, on a GPU in bfloat16 and up to 128k of them."""
    yield _case(2, 4096, device)
    for length in (2**11, 2**13) if device.type == "cpu" else (2**11, 2**13, 2**15, 2**17):
        yield _beside_attention(length, device)


def _case(rows: int, length: int, device: torch.device) -> Case:
    ids = random_ids(rows, length + 1, device)
    model = archs.build("mamba", VOCABULARY, d_model=WIDTH, n_layers=LAYERS).to(device)
    ours = own_step_over(model, ids)
    theirs = peer("mambapy.mamba", lambda module: _mambapy(module, ids))
    return Case(f"{rows} x {length} tokens", ours, _floor(model, rows * length), {"mambapy": theirs}, together=True)


def _beside_attention(length: int, device: torch.device) -> Case:
    """Embedding, layers, width and vocabulary are the same, other sizes each architecture's own."""
    ids = random_ids(1, length + 1, device)

    def training(arch: str) -> Work:
        model = archs.build(arch, VOCABULARY, d_model=WIDTH, n_layers=LAYERS).to(device)
        work = own_step_over(model, ids)

        def in_short_floats() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                work()

        return in_short_floats

    return Case(f"1 x {length} tokens beside attention", training("mamba"), {}, {"our gqa": training("gqa")})


def _floor(model: nn.Module, tokens: int) -> dict[str, float]:
    """Three products per weight, every exp of the scan twice, and each pass's activations once."""
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "A_log" not in name)
    elements = tokens * 2 * WIDTH * LAYERS
    return {
        "gemm": 6.0 * matrices * tokens,
        "exp": 2.0 * elements * (STATES + 4),
        "copy": 4.0 * elements * (4 + 11 + 2 + 5),  # scan and convolution, forward and backward
    }


def _mambapy(module: Any, ids: Tensor) -> Work:
    config = module.MambaConfig(d_model=WIDTH, n_layers=LAYERS, d_state=STATES)
    embedding, readout = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
    model = nn.ModuleDict({"embedding": embedding, "body": module.Mamba(config), "readout": readout}).to(ids.device)
    return step(model, lambda: readout(model["body"](embedding(ids[:, :-1]))), ids[:, 1:])
