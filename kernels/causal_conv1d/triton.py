"""The causal convolution on GPUs in Triton's language (_triton_kernels.py), compiled by Triton at first use.

Two operators without side effects, each with a fake implementation. Inputs of any short dtype are read where they lie,
sums are in float32 and in a fixed order. Nothing is saved for the backward pass but the arguments.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import gpu, native

RANK = 15
FALLBACK = False
why_not = gpu.why_not

WARPS_BACKWARD = 8  # else a thread's part of a tile outgrows its registers
_MOST_PIECES = 64  # of a row's time, each with sums of its own for the gradients of weight and bias


def causal_conv1d(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial_states: Tensor | None, silu: bool
) -> tuple[Tensor, Tensor]:
    """See `kernels.causal_conv1d`. Returns out (B, D, L) and the last W - 1 columns (B, D, W - 1)."""
    given = (x, weight, bias, initial_states)
    eager = gpu.plain(*given) and not native.differentiable(given)
    out = (_convolve if eager else convolve)(*given, silu)
    return out, _last_columns(x, initial_states, weight.shape[1] - 1)


def _last_columns(x: Tensor, initial: Tensor | None, history: int) -> Tensor:
    """(B, D, W - 1), a copy."""
    missing = history - x.shape[2]
    if missing <= 0:
        return x[:, :, -missing:].clone()
    before = x.new_zeros(*x.shape[:2], missing) if initial is None else initial[:, :, history - missing :].to(x.dtype)
    return torch.cat([before, x], 2)


def tile_of(x: Tensor, overlap: int) -> dict[str, int]:
    """The sizes of a tile: long where memory runs along it, and at least twice what it shares with the next one."""
    steps = max(min(32 if x.stride(1) == 1 else 256, x.shape[2] + overlap), 2 * overlap)
    steps = gpu.power_of_two(steps)
    return {"T": steps, "BD": min(max(1, 1024 // steps), gpu.power_of_two(x.shape[1]))}


@torch.library.custom_op("archlab::causal_conv1d_triton", mutates_args=())
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    """The forward pass: out (B, D, L) in the dtype of x."""
    return _convolve(x, weight, bias, initial, silu)


@convolve.register_fake
def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    return torch.empty_like(x)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool) -> Tensor:
    """The operator `convolve`, at work."""
    out = torch.empty_like(x)
    if out.numel() == 0:
        return out
    from kernels.causal_conv1d import _triton_kernels

    tile, (rows, channels, length) = tile_of(x, 0), x.shape
    tiles = -(-length // tile["T"])
    with torch.cuda.device_of(x):
        _triton_kernels.forward[(rows * -(-channels // tile["BD"]) * tiles,)](
            *(x, weight, _or(x, bias), _or(x, initial), out, channels, length, tiles),
            *(*x.stride(), *weight.stride(), *gpu.strides(bias, 1), *gpu.strides(initial, 3), *out.stride()),
            HAS_BIAS=bias is not None,
            HAS_INITIAL=initial is not None,
            SILU=silu,
            W=weight.shape[1],
            enable_fp_fusion=True,
            **tile,
        )
    return out


def _or(instead: Tensor, tensor: Tensor | None) -> Tensor:
    """Something to point at where there is nothing; it is not read."""
    return instead if tensor is None else tensor


@torch.library.custom_op("archlab::causal_conv1d_triton_backward", mutates_args=())
def convolve_backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool
) -> list[Tensor]:
    """The gradients of x, weight, bias and initial; empty for those that are absent."""
    results = _gradients(dout, x, weight, bias, initial, silu)
    dx, dweight, dbias, dinitial = results
    if x.numel() == 0:
        return [result.zero_() for result in results]
    from kernels.causal_conv1d import _triton_kernels

    (rows, channels, length), width = x.shape, weight.shape[1]
    tile, begin = tile_of(x, width - 1), 0 if initial is None else 1 - width
    all_tiles = -(-(length - begin) // (tile["T"] - (width - 1)))
    tiles = -(-all_tiles // _MOST_PIECES)
    pieces = -(-all_tiles // tiles)
    sum_weight = x.new_empty(rows * pieces, channels, width, dtype=torch.float32)
    sum_bias = x.new_empty(rows * pieces if bias is not None else 0, channels, dtype=torch.float32)
    with torch.cuda.device_of(x):
        _triton_kernels.backward[(rows * -(-channels // tile["BD"]) * pieces,)](
            *(x, weight, _or(x, bias), _or(x, initial), dout, dx, dinitial, sum_weight, sum_bias),
            *(channels, length, begin, pieces, tiles),
            *(*x.stride(), *weight.stride(), *gpu.strides(bias, 1), *gpu.strides(initial, 3)),
            *(*dout.stride(), *dx.stride(), *(gpu.strides(initial, 3) if initial is None else dinitial.stride())),
            HAS_BIAS=bias is not None,
            HAS_INITIAL=initial is not None,
            SILU=silu,
            W=width,
            WP=gpu.power_of_two(width),
            enable_fp_fusion=True,
            num_warps=WARPS_BACKWARD,
            **tile,
        )
    dweight.copy_(sum_weight.sum(0))
    if bias is not None:
        dbias.copy_(sum_bias.sum(0))
    return results


@convolve_backward.register_fake
def _gradients(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, silu: bool
) -> list[Tensor]:
    return [x.new_empty(0) if tensor is None else torch.empty_like(tensor) for tensor in (x, weight, bias, initial)]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    tensors = ctx.saved_tensors
    gradients = convolve_backward(dout, *tensors, ctx.silu)
    return *native.given(tensors, gradients), None


convolve.register_autograd(_differentiate, setup_context=_save)
convolve_backward.register_autograd(gpu.no_second_derivatives("causal_conv1d"))
