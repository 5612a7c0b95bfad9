"""One step of the causal convolution in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

One operator, which writes the columns that it is given.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False


def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return native.library(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def causal_conv1d_update(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `kernels.causal_conv1d_update_`. Returns out (B, D)."""
    columns = states.float()  # itself, if it is float32
    bias = None if bias is None else bias.float()
    with torch.no_grad():
        out = update_(x.float(), columns, weight.float(), bias, silu)
        if columns is not states:
            states.copy_(columns)
        else:
            native.written(states)
    return out.to(x.dtype)


update_ = native.operator(
    "causal_conv1d_update_cpu_(Tensor x, Tensor(a!) states, Tensor weight, Tensor? bias, bool silu) -> Tensor",
    lambda x, *rest: torch.empty_like(x),
)
"""All float32: out (B, D); `states` move on by one column."""
