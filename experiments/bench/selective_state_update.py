"""One step of the scan, as in decoding, against the same in plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import kernels
from experiments.bench import _mamba_ssm
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer


def cases(device: torch.device) -> Iterator[Case]:
    """A large batch, where memory is the limit, and one row, where the call is."""
    for rows, channels in ((64, 2048), (1, 256)):
        yield _case(rows, channels, 16, device)


def _case(rows: int, channels: int, states: int, device: torch.device) -> Case:
    state = torch.randn(rows, channels, states, device=device)
    x, dt, z = (torch.randn(rows, channels, device=device) for _ in range(3))
    A = -torch.rand(channels, states, device=device)
    B, C = (torch.randn(rows, states, device=device) for _ in range(2))
    D, bias = (torch.randn(channels, device=device) for _ in range(2))
    arguments = (state, x, dt, A, B, C, D, z, bias, True)

    def ours() -> None:
        with torch.inference_mode():
            kernels.selective_state_update_(*arguments)

    def plain() -> None:
        with torch.inference_mode():
            kernels.selective_state_update_(*arguments, backend="reference")

    theirs = peer("mamba_ssm.ops.triton.selective_state_update", lambda m: _theirs(m, arguments), _mamba_ssm.find)
    floor = {"copy": 2.0 * state.nbytes, "exp": float(state.numel())}
    return Case(f"in place B={rows} D={channels} N={states}", ours, floor, {"plain torch": plain, "mamba_ssm": theirs})


def _theirs(module: Any, arguments: tuple[Any, ...]) -> Work:
    def work() -> None:
        with torch.inference_mode():
            module.selective_state_update(*arguments)

    return work
