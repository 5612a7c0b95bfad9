"""Arguments for the selective scan, and its values and gradients on a backend."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

import kernels

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
RESULTS = ("out", "last_state", *(f"gradient of {name}" for name in NAMES))


@dataclass(frozen=True)
class Case:
    """Sizes and options of one scan; `seed` draws its numbers."""

    length: int
    channels: int = 20
    states: int = 5
    groups_B: int = 2  # 0 = constant in time
    groups_C: int = 2
    options: bool = True  # D, z, delta_bias, initial_state and softplus
    channel_last: bool = False
    rows: int = 2
    seed: int = 0

    def draw(self) -> dict[str, Tensor]:
        """The tensors by name, float64."""
        generator = torch.Generator().manual_seed(self.seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def over_time(*shape: int) -> Tensor:
            drawn = normal(*shape)
            return drawn.mT.contiguous().mT if self.channel_last else drawn

        def matrix(groups: int) -> Tensor:
            sizes = (self.channels, self.states) if groups == 0 else (self.rows, groups, self.states, self.length)
            return over_time(*sizes)

        sequence = (self.rows, self.channels, self.length)
        drawn = {
            "u": over_time(*sequence),
            "delta": over_time(*sequence) if self.options else over_time(*sequence).abs() / 4,
            "A": -normal(self.channels, self.states).exp(),
            "B": matrix(self.groups_B),
            "C": matrix(self.groups_C),
        }
        if self.options:
            drawn |= {"D": normal(self.channels), "z": over_time(*sequence), "delta_bias": normal(self.channels)}
            drawn["initial_state"] = normal(self.rows, self.channels, self.states)
        return drawn


def scan(tensors: dict[str, Tensor], backend: str, **options) -> tuple[Tensor, Tensor]:
    """out and last_state; softplus where there is a delta_bias."""
    softplus = "delta_bias" in tensors
    return kernels.selective_scan(
        **tensors, delta_softplus=softplus, return_last_state=True, backend=backend, **options
    )


def results(tensors: dict[str, Tensor], backend: str) -> list[Tensor]:
    """out, last_state, and the gradient of every tensor, from cotangents that are the same in every dtype."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    values = scan(leaves, backend)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v) for v in values]
    gradients = torch.autograd.grad(values, list(leaves.values()), cotangents)
    return [*(value.detach() for value in values), *gradients]


@functools.cache
def truth(case: Case) -> tuple[list[Tensor], list[Tensor]]:
    """The reference's results in float32 and in float64, of numbers that float32 holds exactly."""
    tensors = as_float32(case)
    return results(tensors, "reference"), results({k: v.double() for k, v in tensors.items()}, "reference")


def as_float32(case: Case) -> dict[str, Tensor]:
    """The case's tensors, rounded; strides kept."""
    return {name: tensor.float() for name, tensor in case.draw().items()}
