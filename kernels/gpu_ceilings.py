"""What a GPU's multiprocessors can do at best, in Triton's language: `archlab bench` holds kernels against it."""

from __future__ import annotations

from collections.abc import Callable

import torch

from kernels import gpu

BLOCK, _REPEATS = 1024, 512


def vector(function: str, count: int, device: torch.device) -> tuple[Callable[[], None], int] | None:
    """What computes a function of about so many numbers, each in a register; and of how many. None without Triton.

    function: 'exp' or 'reciprocal'.
    """
    if gpu.why_not(torch.float32, device) is not None:
        return None
    from kernels import _triton_ceilings

    blocks = -(-count // (BLOCK * _REPEATS))
    numbers = torch.rand(blocks * BLOCK, device=device)
    results = torch.empty_like(numbers)

    def work() -> None:
        with torch.cuda.device_of(numbers):
            _triton_ceilings.repeated[(blocks,)](
                numbers, results, _REPEATS, RECIPROCAL=function == "reciprocal", BLOCK=BLOCK
            )

    return work, numbers.numel() * _REPEATS
