"""The causal convolution in Triton's language. Import this only where Triton is.

A tile is (BD, T): channels of one row, and steps from its `start` on. Before step 0 lie the W - 1 columns of the
initial states. Offsets are 64-bit, the bounds of a tile 32-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_functions import sigmoid


@triton.jit
def place_of(channels_all, pieces, BD: tl.constexpr):
    """Of this program: row, piece of time, channels, and which of these there are."""
    program = tl.program_id(0).to(tl.int64)
    piece, block = program % pieces, program // pieces
    blocks = tl.cdiv(channels_all, BD)
    channels = block % blocks * BD + tl.arange(0, BD)
    return block // blocks, piece, channels, channels < channels_all


@triton.jit
def by_channel(base, channels, stride, live, THERE: tl.constexpr, BD: tl.constexpr):
    """(BD,) of an array that may be absent: then zeros."""
    if THERE:
        return tl.load(base + channels * stride, mask=live, other=0.0).to(tl.float32)
    return tl.zeros((BD,), tl.float32)


@triton.jit
def pointers(base, row, channels, start, steps, s_row, s_channel, s_step):
    """(BD, T) of addresses."""
    return (base + row * s_row + start * s_step + channels * s_channel)[:, None] + (steps.to(tl.int64) * s_step)[
        None, :
    ]


@triton.jit
def within(steps, start, begin, end):
    """(T,): which of the tile's steps lie in [begin, end)."""
    T: tl.constexpr = steps.shape[0]
    low, high = tl.maximum(begin - start, 0).to(tl.int32), tl.maximum(tl.minimum(end - start, T), 0).to(tl.int32)
    return (steps >= low) & (steps < high)


@triton.jit
def columns(
    x, initial, row, channels, start, steps, live, L, x_row, x_channel, x_step, i_row, i_channel, i_step,
    HAS_INITIAL: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """(BD, T) of x and of what lies before it, as float32; 0 outside."""
    there = live[:, None] & within(steps, start, 0, L)[None, :]
    tile = tl.load(pointers(x, row, channels, start, steps, x_row, x_channel, x_step), mask=there, other=0.0)
    tile = tile.to(tl.float32)
    if HAS_INITIAL:
        there = live[:, None] & within(steps, start, -(W - 1), 0)[None, :]
        at = pointers(initial, row, channels, start + (W - 1), steps, i_row, i_channel, i_step)
        tile += tl.load(at, mask=there, other=0.0).to(tl.float32)
    return tile


@triton.jit
def convolved(
    x, weight, initial, shift, row, channels, start, steps, live, L,
    x_row, x_channel, x_step, w_channel, w_tap, i_row, i_channel, i_step,
    HAS_INITIAL: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """(BD, T): the sum over the taps, and the bias."""
    y = tl.zeros((BD, T), tl.float32)
    for tap in range(W):
        w = by_channel(weight + tap * w_tap, channels, w_channel, live, True, BD)
        seen = columns(
            x, initial, row, channels, start + (tap - (W - 1)), steps, live, L,
            x_row, x_channel, x_step, i_row, i_channel, i_step, HAS_INITIAL, W,
        )  # fmt: skip
        y += w[:, None] * seen
    return y + shift[:, None]


@triton.jit
def forward(
    x, weight, bias, initial, out, channels_all, L, tiles,
    x_row, x_channel, x_step, w_channel, w_tap, bias_channel, i_row, i_channel, i_step, out_row, out_channel, out_step,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, SILU: tl.constexpr,
    W: tl.constexpr, BD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """out (B, D, L), one tile to a program."""
    row, tile, channels, live = place_of(channels_all, tiles, BD)
    start, steps = tile * T, tl.arange(0, T)
    shift = by_channel(bias, channels, bias_channel, live, HAS_BIAS, BD)
    y = convolved(
        x, weight, initial, shift, row, channels, start, steps, live, L,
        x_row, x_channel, x_step, w_channel, w_tap, i_row, i_channel, i_step, HAS_INITIAL, W, BD, T,
    )  # fmt: skip
    if SILU:
        y *= sigmoid(y)
    at = pointers(out, row, channels, start, steps, out_row, out_channel, out_step)
    tl.store(at, y.to(out.dtype.element_ty), mask=live[:, None] & within(steps, start, 0, L)[None, :])


@triton.jit
def at_sum(
    x, weight, initial, dout, shift, row, channels, start, steps, live, L,
    x_row, x_channel, x_step, w_channel, w_tap, i_row, i_channel, i_step, dout_row, dout_channel, dout_step,
    HAS_INITIAL: tl.constexpr, SILU: tl.constexpr, W: tl.constexpr, BD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """(BD, T): the gradient of what the activation is given; 0 outside."""
    there = live[:, None] & within(steps, start, 0, L)[None, :]
    at = pointers(dout, row, channels, start, steps, dout_row, dout_channel, dout_step)
    g = tl.load(at, mask=there, other=0.0).to(tl.float32)
    if SILU:
        y = convolved(
            x, weight, initial, shift, row, channels, start, steps, live, L,
            x_row, x_channel, x_step, w_channel, w_tap, i_row, i_channel, i_step, HAS_INITIAL, W, BD, T,
        )  # fmt: skip
        s = sigmoid(y)
        g = tl.where(there, g * s * (1.0 + y * (1.0 - s)), 0.0)
    return g


@triton.jit
def backward(
    x, weight, bias, initial, dout, dx, dinitial, dweight, dbias, channels_all, L, begin, pieces, tiles,
    x_row, x_channel, x_step, w_channel, w_tap, bias_channel, i_row, i_channel, i_step,
    dout_row, dout_channel, dout_step, dx_row, dx_channel, dx_step, di_row, di_channel, di_step,
    HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr, SILU: tl.constexpr,
    W: tl.constexpr, WP: tl.constexpr, BD: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """dx and dinitial, and of each program's `tiles` tiles the sums dweight (B, pieces, D, W), dbias (B, pieces, D).

    begin: the first step, -(W - 1) where there are initial states, else 0. What a column is seen by lies up to W - 1
    steps later: that many steps at the end of a tile are the beginning of the next.
    """
    row, piece, channels, live = place_of(channels_all, pieces, BD)
    shift = by_channel(bias, channels, bias_channel, live, HAS_BIAS, BD)
    taps, steps = tl.arange(0, WP), tl.arange(0, T)
    own = (steps < T - (W - 1))[None, :]
    sum_weight, sum_bias = tl.zeros((BD, WP), tl.float32), tl.zeros((BD,), tl.float32)
    for tile in range(tiles):
        start = begin + (piece * tiles + tile) * (T - (W - 1))
        g = at_sum(
            x, weight, initial, dout, shift, row, channels, start, steps, live, L,
            x_row, x_channel, x_step, w_channel, w_tap, i_row, i_channel, i_step,
            dout_row, dout_channel, dout_step, HAS_INITIAL, SILU, W, BD, T,
        )  # fmt: skip
        seen = columns(
            x, initial, row, channels, start, steps, live, L,
            x_row, x_channel, x_step, i_row, i_channel, i_step, HAS_INITIAL, W,
        )  # fmt: skip
        seen = tl.where(own, seen, 0.0)
        flow = tl.zeros((BD, T), tl.float32)
        for tap in range(W):
            later = tl.minimum(steps + (W - 1 - tap), T - 1)
            by = tl.gather(g, tl.broadcast_to(later[None, :], (BD, T)), 1)
            flow += by_channel(weight + tap * w_tap, channels, w_channel, live, True, BD)[:, None] * by
            sum_weight += tl.where((taps == tap)[None, :], tl.sum(by * seen, 1)[:, None], 0.0)
        sum_bias += tl.sum(tl.where(own, g, 0.0), 1)
        at = pointers(dx, row, channels, start, steps, dx_row, dx_channel, dx_step)
        tl.store(at, flow.to(dx.dtype.element_ty), mask=live[:, None] & own & within(steps, start, 0, L)[None, :])
        if HAS_INITIAL:
            at = pointers(dinitial, row, channels, start + (W - 1), steps, di_row, di_channel, di_step)
            before = live[:, None] & own & within(steps, start, -(W - 1), 0)[None, :]
            tl.store(at, flow.to(dinitial.dtype.element_ty), mask=before)
    at = (row * pieces + piece) * channels_all + channels
    tl.store(dweight + at[:, None] * W + taps[None, :], sum_weight, mask=live[:, None] & (taps < W)[None, :])
    if HAS_BIAS:
        tl.store(dbias + at, sum_bias, mask=live)
