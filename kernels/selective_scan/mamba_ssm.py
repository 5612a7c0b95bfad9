"""The selective scan of the package mamba_ssm, where it is installed with its CUDA build.

Only by name: 'auto' has faster ones that can do more. This one takes no initial state and drops the gradient through
the last state; both are refused here.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor

RANK = -10
FALLBACK = False

_MOST_STATES = 256
_REFUSAL = "selective_scan: the backend 'mamba_ssm' cannot run: "
_REMEDY = "take backend='auto'"


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can."""
    if device is not None and device.type != "cuda":
        return f"it serves CUDA tensors, not {device.type}: move them, or take another backend"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, not {dtype}: take backend='reference'"
    found = _peer()
    return found if isinstance(found, str) else None


@functools.cache
def _peer() -> Callable[..., Any] | str:
    """The package's function, or why there is none."""
    try:
        importlib.import_module("selective_scan_cuda")
        return importlib.import_module("mamba_ssm.ops.selective_scan_interface").selective_scan_fn
    except ImportError as error:
        remedy = "MAMBA_KEEP_CUDA_BUILD=TRUE pip install --no-build-isolation mamba-ssm, where there is nvcc"
        return f"the package is not installed with its CUDA build ({error}): {remedy}"


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_scan`. Returns out (B, D, L), h_L (B, D, N).

    Raises ValueError for an initial state, and RuntimeError when a gradient comes back through h_L.
    """
    if initial_state is not None:
        raise ValueError(f"{_REFUSAL}it takes no initial_state: {_REMEDY}")
    if A.shape[1] > _MOST_STATES:
        raise ValueError(f"{_REFUSAL}it takes at most {_MOST_STATES} states per channel, got {A.shape[1]}: {_REMEDY}")
    function = _peer()
    if isinstance(function, str):
        raise ValueError(f"{_REFUSAL}{function}")
    u_dtype, dtype = u.dtype, _common_dtype(u, delta, B, C, z)
    u, delta, B, C, z = (_to(tensor, dtype if _over_time(tensor) else torch.float32) for tensor in (u, delta, B, C, z))
    A, D, delta_bias = (_to(tensor, torch.float32) for tensor in (A, D, delta_bias))
    out, last_state = function(
        u, delta, A, B, C, D=D, z=z, delta_bias=delta_bias, delta_softplus=delta_softplus, return_last_state=True
    )
    return out.to(u_dtype), WithoutGradient.apply(last_state)


def _over_time(tensor: Tensor | None) -> bool:
    """Whether it changes in time: such tensors it wants in one dtype, the others in float32."""
    return tensor is not None and tensor.dim() > 2


def _common_dtype(*tensors: Tensor | None) -> torch.dtype:
    dtypes = [tensor.dtype for tensor in tensors if tensor is not None and _over_time(tensor)]
    return functools.reduce(torch.promote_types, dtypes)


def _to(tensor: Any, dtype: torch.dtype) -> Any:
    return None if tensor is None else tensor.to(dtype)


class WithoutGradient(torch.autograd.Function):
    """The last state, through which the package would drop the gradient without a word."""

    @staticmethod
    def forward(ctx: Any, last_state: Tensor) -> Tensor:
        """A copy: the package's is a view of all states that it keeps for its backward pass."""
        return last_state.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> NoReturn:
        """There is none."""
        raise RuntimeError(f"{_REFUSAL}it has no gradient through the last state: {_REMEDY}")
