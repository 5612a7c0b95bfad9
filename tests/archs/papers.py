"""What the tests against the papers share: backbones whose every parameter counts, and rows without padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from toys import ragged

import archs

VOCABULARY = 11
SOURCE = ragged(6, 1, 4, vocabulary=VOCABULARY)
TARGET = torch.tensor([[3, 9, 4, 9, 5], [7, 7, 8, 3, 10], [10, 4, 6, 5, 3]])

Weights = dict[str, Tensor]


def build(name: str, **config: Any) -> archs.Backbone:
    """A float64 backbone with random parameters throughout: no bias is 0, no gain is 1, no two layers agree."""
    backbone = archs.build(name, VOCABULARY, **config).double().eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for parameter in backbone.parameters():
        parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return backbone


def weights(module: torch.nn.Module, prefix: str) -> Weights:
    """The parameters below a submodule, by what is left of their names."""
    return {key.removeprefix(prefix): value for key, value in module.state_dict().items() if key.startswith(prefix)}


def rows() -> list[Tensor]:
    """The real source tokens of each row, (S,) each."""
    assert SOURCE.mask is not None
    return [ids[mask] for ids, mask in zip(SOURCE.ids, SOURCE.mask, strict=True)]


def logits(of_row: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B, T, V), from a function of one row's source (S,) and target (T,)."""
    return torch.stack([of_row(source, target) for source, target in zip(rows(), TARGET, strict=True)])


def on_source(of_row: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """(B, T, S), from a function that gives (T, real tokens of the source); 0 at pads."""
    columns = SOURCE.ids.shape[1]
    found = [of_row(source, target) for source, target in zip(rows(), TARGET, strict=True)]
    return torch.stack([torch.nn.functional.pad(row, (columns - row.shape[1], 0)) for row in found])


def same(got: Tensor, expected: Tensor) -> None:
    """Equal but for rounding in float64."""
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
