"""One step of the causal convolution in Triton's language. Import this only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_functions import sigmoid


@triton.jit
def update(
    x, states, weight, bias, out, channels_all,
    x_row, x_channel, s_row, s_channel, s_column, w_channel, w_tap, bias_channel, out_row, out_channel,
    HAS_BIAS: tl.constexpr, SILU: tl.constexpr, W: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """out (B, D); `states` (B, D, W - 1) move on by one column. A program has BD channels of one row."""
    blocks = tl.cdiv(channels_all, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channels = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD)
    live = channels < channels_all
    column = states + row * s_row + channels * s_channel
    taps = weight + channels * w_channel
    y = tl.zeros((BD,), tl.float32)
    for tap in range(W - 1):
        seen = tl.load(column + tap * s_column, mask=live, other=0.0)
        y += tl.load(taps + tap * w_tap, mask=live, other=0.0).to(tl.float32) * seen.to(tl.float32)
        if tap > 0:  # only now: what was there has been read
            tl.store(column + (tap - 1) * s_column, seen, mask=live)
    newest = tl.load(x + row * x_row + channels * x_channel, mask=live, other=0.0).to(tl.float32)
    y += tl.load(taps + (W - 1) * w_tap, mask=live, other=0.0).to(tl.float32) * newest
    if W > 1:
        tl.store(column + (W - 2) * s_column, newest.to(states.dtype.element_ty), mask=live)
    if HAS_BIAS:
        y += tl.load(bias + channels * bias_channel, mask=live, other=0.0).to(tl.float32)
    if SILU:
        y *= sigmoid(y)
    tl.store(out + row * out_row + channels * out_channel, y.to(out.dtype.element_ty), mask=live)
