"""Products with a matrix of weights, as in a training step, against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import kernels
from experiments.bench._measure import Case, Work

ROWS = 8192


def cases(device: torch.device) -> Iterator[Case]:
    """The projections of a small and of a larger model, each with its gradients, by 8192 vectors."""
    for inputs, outputs in ((128, 512), (512, 128), (256, 40), (768, 768), (768, 3072)):
        yield _case(inputs, outputs, device)


def _case(inputs: int, outputs: int, device: torch.device) -> Case:
    x = torch.randn(ROWS, inputs, device=device, requires_grad=True)
    weight = torch.randn(outputs, inputs, device=device, requires_grad=True)
    cotangent = torch.randn(ROWS, outputs, device=device)

    def by(backend: str) -> Work:
        def work() -> tuple[Tensor, ...]:
            return torch.autograd.grad(kernels.linear(x, weight, backend=backend), (x, weight), cotangent)

        return work

    floor = {"gemm": 3 * 2.0 * ROWS * inputs * outputs}
    peers: dict[str, Any] = {"torch": by("reference")}
    return Case(f"forward+backward {ROWS} x {inputs} -> {outputs}", by("auto"), floor, peers)
