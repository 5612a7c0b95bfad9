"""The short causal convolution with SiLU against torch's own grouped one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer


def cases(device: torch.device) -> Iterator[Case]:
    """A large layer's, channels first and channels last, with and without gradients."""
    dtypes = (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,)
    for dtype in dtypes:
        for last in (False, True):
            for backward in (False, True):
                yield _case(1, 1536, 2048, 4, last, backward, device, dtype)


def _case(
    rows: int,
    channels: int,
    length: int,
    width: int,
    last: bool,
    backward: bool,
    device: torch.device,
    dtype: torch.dtype,
) -> Case:
    shape = (rows, length, channels) if last else (rows, channels, length)
    x = torch.randn(*shape, device=device, dtype=dtype)
    x = (x.mT if last else x).requires_grad_()
    weight = torch.randn(channels, width, device=device, dtype=dtype, requires_grad=True)
    bias = torch.randn(channels, device=device, dtype=dtype, requires_grad=True)

    def mode(work: Work) -> Work:
        def forward() -> Tensor:
            with torch.no_grad():
                return work()

        def both() -> Any:
            out = work()
            return torch.autograd.grad(out, (x, weight, bias), torch.ones_like(out))

        return both if backward else forward

    def theirs() -> Tensor:
        out = F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=channels)
        return F.silu(out[..., :length])

    peers: dict[str, Work | str] = {"F.conv1d + silu": mode(theirs)}
    found = peer("causal_conv1d", lambda module: lambda: module.causal_conv1d_fn(x, weight, bias, activation="silu"))
    peers["causal_conv1d"] = found if isinstance(found, str) else mode(found)
    name = f"forward{'+backward' if backward else ''} B={rows} D={channels} L={length} W={width}"
    name += f" {dtype}" if dtype != torch.float32 else ""
    floor = {"copy": float(x.nbytes) * (5 if backward else 2), "exp": x.numel() * (2.0 if backward else 1.0)}
    ours = mode(lambda: kernels.causal_conv1d(x, weight, bias, activation="silu"))
    return Case(f"{name}{', channels last' if last else ''}", ours, floor, peers)
