"""Functions of numbers for programs in Triton's language. Import this only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp -x)."""
    return 1.0 / (1.0 + tl.exp2(x * -1.4426950408889634))


@triton.jit
def softplus(x):
    """log(1 + exp x) = max(x, 0) + 2 artanh(e / (2 + e)), e = exp(-|x|), by a fitted series."""
    e = tl.exp2(tl.abs(x) * -1.4426950408889634)
    s = e / (2.0 + e)
    q = s * s
    p = (((0.28174657 * q + 0.27961418) * q + 0.40024853) * q + 0.66666317) * q + 2.0
    return tl.where(x != x, x, tl.maximum(x, 0.0)) + s * p


@triton.jit
def tanh(x):
    """By exp(-2|x|), which never overflows: as near as float32 tells numbers around 1 apart."""
    e = tl.exp2(tl.abs(x) * -2.8853900817779268)
    positive = (1.0 - e) / (1.0 + e)
    return tl.where(x < 0.0, -positive, positive)
