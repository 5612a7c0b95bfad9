"""One step of the causal convolution on GPUs in Triton's language (_triton_kernels.py), compiled at first use.

One operator, which writes the columns that it is given where they lie, in their dtype; nothing else is allocated but
the result, and nothing waits for the GPU, so that a step can be captured in a graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import gpu

RANK = 15
FALLBACK = False
why_not = gpu.why_not

CHANNELS = 128
"""Of a program."""


def causal_conv1d_update(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """See `kernels.causal_conv1d_update_`. Returns out (B, D)."""
    if not gpu.plain(x, states, weight, bias):
        with torch.no_grad():
            return update_(x, states, weight, bias, silu)
    if not states.is_inference():
        torch.autograd.graph.increment_version(states)  # so that autograd notices, should it have kept the old ones
    return _written(x, states, weight, bias, silu)


@torch.library.custom_op("archlab::causal_conv1d_update_triton_", mutates_args=("states",))
def update_(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """Returns out (B, D) in the dtype of x; `states` move on by one column."""
    return _written(x, states, weight, bias, silu)


@update_.register_fake
def _result(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x)


def _written(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, silu: bool) -> Tensor:
    """The operator, at work."""
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    from kernels.causal_conv1d_update import _triton_kernels

    rows, channels = x.shape
    with torch.cuda.device_of(x):
        _triton_kernels.update[(rows * -(-channels // CHANNELS),)](
            *(x, states, weight, x if bias is None else bias, out, channels),
            *(*x.stride(), *states.stride(), *weight.stride(), *gpu.strides(bias, 1), *out.stride()),
            HAS_BIAS=bias is not None,
            SILU=silu,
            W=weight.shape[1],
            BD=CHANNELS,
            enable_fp_fusion=True,
        )
    return out
