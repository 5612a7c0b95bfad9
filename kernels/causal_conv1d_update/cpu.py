"""One step of the causal convolution in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

One operator, which writes the columns that it is given.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def causal_conv1d_update(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `kernels.causal_conv1d_update_`. Returns out (B, D)."""
    columns = states.float()  # itself, if it is float32
    bias = None if bias is None else bias.float()
    out = _advanced(x.float(), columns, weight.float(), bias, silu)
    if columns is not states:
        states.copy_(columns)
    return out.to(x.dtype)


def _advanced(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    if not native.plain(x, states, weight, bias):
        with torch.no_grad():
            return update_(x, states, weight, bias, silu)
    if not states.is_inference():
        torch.autograd.graph.increment_version(states)  # so that autograd notices, should it have kept the old ones
    return _written(x, states, weight, bias, silu)


@torch.library.custom_op("archlab::causal_conv1d_update_cpu_", mutates_args=("states",), device_types="cpu")
def update_(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """All float32: out (B, D); `states` move on by one column."""
    return _written(x, states, weight, bias, silu)


@update_.register_fake
def _result(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x)


def _written(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """The operator, at work."""
    out = torch.empty_like(x)
    problem = [*x.shape, weight.shape[1], native.threads(x.numel() * (weight.shape[1] + 8)), silu]
    for tensor in (weight, bias, states):
        problem += native.numbers(tensor, 3)
    for tensor in (x, out):
        problem += (tensor.data_ptr(), *tensor.stride(), 0)
    native.call(library(), "causal_conv1d_update", problem)
    return out
