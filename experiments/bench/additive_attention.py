"""Bahdanau's attention against the same written down directly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import kernels
from experiments.bench._measure import Case, Work


def cases(device: torch.device) -> Iterator[Case]:
    """All queries at once, and one: what a decoder asks for at each step."""
    for rows, queries, keys in ((2, 256, 1024), (32, 1, 128)):
        for backward in (False, True):
            yield _case(rows, queries, keys, 128, 256, backward, device)


def _case(rows: int, queries: int, keys: int, hidden: int, width: int, backward: bool, device: torch.device) -> Case:
    shapes = ((rows, queries, hidden), (rows, keys, hidden), (rows, keys, width), (hidden,))
    tensors = [torch.randn(*shape, device=device, requires_grad=True) for shape in shapes]

    def direct(query: Tensor, key: Tensor, value: Tensor, v: Tensor) -> Tensor:
        return torch.softmax(torch.tanh(query[:, :, None] + key[:, None]) @ v, -1) @ value

    def mode(function: Any) -> Work:
        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        def both() -> Any:
            out = function(*tensors)
            return torch.autograd.grad(out, tensors, torch.ones_like(out))

        return both if backward else forward

    terms = rows * queries * keys
    passes = 2.0 if backward else 1.0
    floor = {  # a term of a score is a reciprocal if the exponentials of queries and keys are at hand
        "reciprocal": passes * terms * hidden,
        "exp": passes * rows * (queries + keys) * hidden,
        "gemm": 2.0 * terms * width * (3 if backward else 1),
    }
    name = f"forward{'+backward' if backward else ''} B={rows} T={queries} S={keys} H={hidden} E={width}"
    return Case(name, mode(kernels.additive_attention), floor, {"written directly": mode(direct)}, together=True)
