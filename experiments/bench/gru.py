"""A GRU over a sequence against torch's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import kernels
from experiments.bench._measure import Case, Work


def cases(device: torch.device) -> Iterator[Case]:
    """Many short sequences, and a few long ones."""
    for rows, steps in ((32, 128), (2, 2048)):
        for backward in (False, True):
            yield _case(rows, steps, 128, backward, device)


def _case(rows: int, steps: int, size: int, backward: bool, device: torch.device) -> Case:
    rnn = nn.GRU(size, size, batch_first=True).to(device)
    weight_ih, weight_hh, bias_ih, bias_hh = rnn.all_weights[0]
    inputs = torch.randn(rows, steps, size, device=device, requires_grad=True)

    def mode(work: Work) -> Work:
        def forward() -> Tensor:
            with torch.no_grad():
                return work()[0]

        def both() -> Any:
            states = work()[0]
            return torch.autograd.grad(states, (inputs, *rnn.parameters()), torch.ones_like(states))

        return both if backward else forward

    numbers = rows * steps * size
    floor = {
        "gemm": (3.0 if backward else 1.0) * 2 * numbers * 6 * size,
        "exp": 3.0 * numbers,  # of each gate
    }
    name = f"forward{'+backward' if backward else ''} B={rows} T={steps} H={size}"
    ours = mode(lambda: kernels.gru(inputs, weight_ih, weight_hh, bias_ih, bias_hh))
    return Case(name, ours, floor, {"nn.GRU": mode(lambda: rnn(inputs))}, together=True)
