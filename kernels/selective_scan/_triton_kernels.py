"""The selective scan in Triton's language. Import this only where Triton is.

A program has BD channels of one row and goes through time in chunks of T steps; its tiles are (BD, N, T). Within a
chunk the recurrence is an associative scan of (decay, value), always forwards: what runs backwards in time is loaded in
reverse. Offsets are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_functions import sigmoid, softplus


@triton.jit
def combine(a_left, b_left, a_right, b_right):
    """Two stretches of time, one after the other."""
    return a_left * a_right, b_left * a_right + b_right


@triton.jit
def sequence(base, row, channels, steps, s_row, s_channel, s_step, live, L):
    """(BD, T) of a (B, D, L) tensor as float32; 0 outside."""
    offsets = row * s_row + channels[:, None] * s_channel + steps[None, :] * s_step
    there = live[:, None] & (steps >= 0)[None, :] & (steps < L)[None, :]
    return tl.load(base + offsets, mask=there, other=0.0).to(tl.float32)


@triton.jit
def matrix(base, row, group, states, steps, s_row, s_group, s_state, s_step, N, L):
    """(N, T) of a (B, G, N, L) tensor as float32; 0 outside."""
    offsets = row * s_row + group * s_group + states[:, None] * s_state + steps[None, :] * s_step
    there = (states < N)[:, None] & (steps >= 0)[None, :] & (steps < L)[None, :]
    return tl.load(base + offsets, mask=there, other=0.0).to(tl.float32)


@triton.jit
def step_sizes(raw, bias, steps, live, L, SOFTPLUS: tl.constexpr):
    """(BD, T), exactly 0 where there is no step."""
    x = raw + bias[:, None]
    if SOFTPLUS:
        x = softplus(x)
    return tl.where(live[:, None] & ((steps >= 0) & (steps < L))[None, :], x, 0.0)


@triton.jit
def scanned(dt, x, A, b, start):
    """(BD, N, T): the states of a chunk that starts with `start` (BD, N)."""
    decay = tl.exp2(dt[:, None, :] * A[:, :, None])
    product, local = tl.associative_scan((decay, x[:, None, :] * b[None, :, :]), 2, combine)
    return product * start[:, :, None] + local


@triton.jit
def last_of(tile, T: tl.constexpr):
    """(BD, N): the last column of (BD, N, T)."""
    return tl.sum(tl.where((tl.arange(0, T) == T - 1)[None, None, :], tile, 0.0), 2)


@triton.jit
def states_before(
    u, delta, B, row, group, channels, states, chunk, live, start, a2, shift, L, N,
    u_row, u_channel, u_step, delta_row, delta_channel, delta_step, B_row, B_group, B_state, B_step,
    SOFTPLUS: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """(BD, N, T), backwards in time: the state before each step. The scan of the inputs one step earlier ends in it."""
    before = tl.arange(0, T).to(tl.int64) + chunk * T - 1
    first = (tl.arange(0, T) == 0)[None, :]
    raw = sequence(delta, row, channels, before, delta_row, delta_channel, delta_step, live, L)
    dt = tl.where(first, 0.0, step_sizes(raw, shift, before, live, L, SOFTPLUS))
    x = sequence(u, row, channels, before, u_row, u_channel, u_step, live, L)
    b = matrix(B, row, group, states, before, B_row, B_group, B_state, B_step, N, L)
    return tl.flip(scanned(dt, tl.where(first, 0.0, dt * x), a2, tl.where(first, 0.0, b), start), 2)


@triton.jit
def optional(base, offsets, mask, THERE: tl.constexpr, BD: tl.constexpr):
    """(BD,) of an array that may be absent: then zeros."""
    return tl.load(base + offsets, mask=mask, other=0.0) if THERE else tl.zeros((BD,), tl.float32)


@triton.jit
def first_decay(delta, a2, shift, row, channels, live, delta_row, delta_channel, delta_step, L, SOFTPLUS: tl.constexpr):
    """(BD, N): a_1, of the very first step."""
    raw = tl.load(delta + row * delta_row + channels * delta_channel, mask=live, other=0.0).to(tl.float32) + shift
    dt = softplus(raw) if SOFTPLUS else raw
    return tl.exp2(tl.where(live, dt, 0.0)[:, None] * a2)


@triton.jit
def place_of(channels_all, per_group, N, BD: tl.constexpr, NP: tl.constexpr):
    """Of this program: row, group, part of the group, which channels there are, channels, states, and of (D, N) arrays
    which elements there are, and their offsets. Rows share the grid's first axis: the others end at 65535."""
    program, parts = tl.program_id(0).to(tl.int64), tl.cdiv(per_group, BD)
    per_row = channels_all // per_group * parts
    group, part = program % per_row // parts, program % parts
    within = part * BD + tl.arange(0, BD)
    live, channels = within < per_group, group * per_group + within
    states = tl.arange(0, NP).to(tl.int64)
    square = live[:, None] & (states < N)[None, :]
    at = channels[:, None] * N + states[None, :]
    return program // per_row, group, part, live, channels, states, square, at


@triton.jit
def forward(
    u, delta, A, B, C, D, z, bias, initial, out, last, kept,
    channels_all, L, N, per_group, chunks,
    u_row, u_channel, u_step, delta_row, delta_channel, delta_step, z_row, z_channel, z_step,
    out_row, out_channel, out_step, B_row, B_group, B_state, B_step, C_row, C_group, C_state, C_step,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_INITIAL: tl.constexpr,
    SOFTPLUS: tl.constexpr, KEEP: tl.constexpr, BD: tl.constexpr, NP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """out (B, D, L), last (B, D, N), and kept (B, chunks, D, N), the state before each chunk."""
    row, group, _, live, channels, states, square, at = place_of(channels_all, per_group, N, BD, NP)
    a2 = tl.load(A + at, mask=square, other=0.0) * 1.4426950408889634  # log2(e)
    d = optional(D, channels, live, HAS_D, BD)
    shift = optional(bias, channels, live, HAS_BIAS, BD)
    by_row = row * channels_all * N + at
    h = tl.load(initial + by_row, mask=square, other=0.0) if HAS_INITIAL else tl.zeros((BD, NP), tl.float32)
    for chunk in range(chunks):
        if KEEP:
            tl.store(kept + (row * chunks + chunk) * channels_all * N + at, h, mask=square)
        steps = tl.arange(0, T).to(tl.int64) + chunk * T
        raw = sequence(delta, row, channels, steps, delta_row, delta_channel, delta_step, live, L)
        dt = step_sizes(raw, shift, steps, live, L, SOFTPLUS)
        x = sequence(u, row, channels, steps, u_row, u_channel, u_step, live, L)
        b = matrix(B, row, group, states, steps, B_row, B_group, B_state, B_step, N, L)
        c = matrix(C, row, group, states, steps, C_row, C_group, C_state, C_step, N, L)
        hs = scanned(dt, dt * x, a2, b, h)
        y = tl.sum(hs * c[None, :, :], 1) + d[:, None] * x
        if HAS_Z:
            gate = sequence(z, row, channels, steps, z_row, z_channel, z_step, live, L)
            y = y * gate * sigmoid(gate)
        offsets = row * out_row + channels[:, None] * out_channel + steps[None, :] * out_step
        tl.store(out + offsets, y.to(out.dtype.element_ty), mask=live[:, None] & (steps < L)[None, :])
        h = last_of(hs, T)
    tl.store(last + by_row, h, mask=square)


@triton.jit
def through_gate(dz, dout, y, gate, there):
    """Writes the gradient of the gate; returns that of y."""
    s = sigmoid(gate)
    tl.store(dz, dout * y * s * (1.0 + gate * (1.0 - s)), mask=there)
    return dout * gate * s


@triton.jit
def write_sum(to, slot, products, states, inside, N, width):
    """The sum over the program's channels, of (BD, N, T), at (N, width)."""
    mask = (states < N)[:, None] & inside
    tl.store(to + slot[None, :] + states[:, None] * width, tl.sum(products, 0), mask=mask)


@triton.jit
def write_sums(left, right, at, sum_left, sum_right, there):
    """Two arrays at the same place."""
    tl.store(left + at, sum_left, mask=there)
    tl.store(right + at, sum_right, mask=there)


@triton.jit
def gradient_of_delta(w, a1, x, s1, raw, there, SOFTPLUS: tl.constexpr):
    """(BD, T), exactly 0 where there is no step. w: G a_t h_{t-1}; s1: sum of G B; raw: before softplus."""
    gradient = tl.sum(w * a1[:, :, None], 1) + x * s1
    if SOFTPLUS:
        gradient *= sigmoid(raw)
    return tl.where(there, gradient, 0.0)


@triton.jit
def backward(
    u, delta, A, B, C, D, z, bias, dout, dlast, kept, du, ddelta, dz, dA, dB, dC, dD, dbias, dinitial,
    channels_all, L, N, per_group, groups, rows, all_chunks, first_chunk, chunks,
    u_row, u_channel, u_step, delta_row, delta_channel, delta_step, z_row, z_channel, z_step,
    dout_row, dout_channel, dout_step, B_row, B_group, B_state, B_step, C_row, C_group, C_state, C_step,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr,
    SOFTPLUS: tl.constexpr, BD: tl.constexpr, NP: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Over `chunks` chunks from `first_chunk` on. dlast, dinitial (B, D, N): G of the step after, and of the first,
    in the end a_1 G_1. du, ddelta, dz: contiguous float32 (B, D, L). dB, dC: (parts, B, G, N, chunks T)."""
    row, group, part, live, channels, states, square, at = place_of(channels_all, per_group, N, BD, NP)
    a1 = tl.load(A + at, mask=square, other=0.0)
    a2 = a1 * 1.4426950408889634  # log2(e)
    d, shift = optional(D, channels, live, HAS_D, BD), optional(bias, channels, live, HAS_BIAS, BD)
    by_row = row * channels_all * N + at
    later = tl.load(dlast + by_row, mask=square, other=0.0)  # G of the step after the chunk
    sum_A, sum_D, sum_bias = tl.zeros((BD, NP), tl.float32), tl.zeros((BD,), tl.float32), tl.zeros((BD,), tl.float32)
    for count in range(chunks):
        chunk = first_chunk + chunks - 1 - count
        steps = chunk * T + T - 1 - tl.arange(0, T).to(tl.int64)  # everything below runs backwards in time
        inside = (steps < L)[None, :]
        start = tl.load(kept + (row * all_chunks + chunk) * channels_all * N + at, mask=square, other=0.0)
        h_before = states_before(
            u, delta, B, row, group, channels, states, chunk, live, start, a2, shift, L, N,
            u_row, u_channel, u_step, delta_row, delta_channel, delta_step,
            B_row, B_group, B_state, B_step, SOFTPLUS, T,
        )  # fmt: skip
        raw = sequence(delta, row, channels, steps, delta_row, delta_channel, delta_step, live, L)
        dt = step_sizes(raw, shift, steps, live, L, SOFTPLUS)
        x = sequence(u, row, channels, steps, u_row, u_channel, u_step, live, L)
        b = matrix(B, row, group, states, steps, B_row, B_group, B_state, B_step, N, L)
        c = matrix(C, row, group, states, steps, C_row, C_group, C_state, C_step, N, L)
        g = sequence(dout, row, channels, steps, dout_row, dout_channel, dout_step, live, L)
        decayed = tl.exp2(dt[:, None, :] * a2[:, :, None]) * h_before
        h = decayed + (dt * x)[:, None, :] * b[None, :, :]
        y = tl.sum(h * c[None, :, :], 1) + d[:, None] * x
        place = (row * channels_all + channels[:, None]) * L + steps[None, :]
        there = live[:, None] & inside
        if HAS_Z:
            gate = sequence(z, row, channels, steps, z_row, z_channel, z_step, live, L)
            g = through_gate(dz + place, g, y, gate, there)
        later_raw = sequence(delta, row, channels, steps + 1, delta_row, delta_channel, delta_step, live, L)
        dt_next = step_sizes(later_raw, shift, steps + 1, live, L, SOFTPLUS)
        G = scanned(dt_next, g, a2, c, later)  # G_t = C_t g_t + a_{t+1} G_{t+1}
        later = last_of(G, T)
        w = tl.where(inside[:, None, :], G * decayed, 0.0)
        sum_A += tl.sum(w * dt[:, None, :], 2)
        s1 = tl.sum(G * b[None, :, :], 1)
        step_gradient = gradient_of_delta(w, a1, x, s1, raw + shift[:, None], there, SOFTPLUS)
        sum_bias += tl.sum(step_gradient, 1)
        sum_D += tl.sum(g * x, 1)
        tl.store(du + place, d[:, None] * g + dt * s1, mask=there)
        tl.store(ddelta + place, step_gradient, mask=there)
        slot = ((part * rows + row) * groups + group) * N * (chunks * T) + steps - first_chunk * T
        write_sum(dB, slot, G * (dt * x)[:, None, :], states, inside, N, chunks * T)
        write_sum(dC, slot, h * g[:, None, :], states, inside, N, chunks * T)
    if first_chunk == 0:
        later *= first_decay(delta, a2, shift, row, channels, live, delta_row, delta_channel, delta_step, L, SOFTPLUS)
    write_sums(dinitial, dA, by_row, later, sum_A, square)
    write_sums(dD, dbias, row * channels_all + channels, sum_D, sum_bias, live)
