"""One step of the selective scan in Triton's language. Import this only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_functions import sigmoid, softplus


@triton.jit
def optional(base, offsets, live, THERE: tl.constexpr, BD: tl.constexpr):
    """(BD,) of an array that may be absent, as float32: then zeros."""
    if THERE:
        return tl.load(base + offsets, mask=live, other=0.0).to(tl.float32)
    return tl.zeros((BD,), tl.float32)


@triton.jit
def by_group(base, row, groups, states, there, s_row, s_group, s_state):
    """(BD, N) of a (B, G, N) tensor, as float32."""
    offsets = row * s_row + groups[:, None] * s_group + states[None, :] * s_state
    return tl.load(base + offsets, mask=there, other=0.0).to(tl.float32)


@triton.jit
def update(
    state, x, dt, A, B, C, D, z, bias, new, out, channels_all, N, per_group_B, per_group_C,
    state_row, state_channel, state_state, x_row, x_channel, dt_row, dt_channel, A_channel, A_state,
    B_row, B_group, B_state, C_row, C_group, C_state, D_channel, z_row, z_channel, bias_channel,
    new_row, new_channel, new_state, out_row, out_channel,
    HAS_D: tl.constexpr, HAS_Z: tl.constexpr, HAS_BIAS: tl.constexpr, SOFTPLUS: tl.constexpr,
    BD: tl.constexpr, NP: tl.constexpr,
):  # fmt: skip
    """out (B, D), and new (B, D, N), which may be `state` itself. A program has BD channels of one row."""
    blocks = tl.cdiv(channels_all, BD)
    row = (tl.program_id(0) // blocks).to(tl.int64)
    channels = (tl.program_id(0) % blocks).to(tl.int64) * BD + tl.arange(0, BD)
    states = tl.arange(0, NP).to(tl.int64)
    live = channels < channels_all
    there = live[:, None] & (states < N)[None, :]
    step = tl.load(dt + row * dt_row + channels * dt_channel, mask=live, other=0.0).to(tl.float32)
    step += optional(bias, channels * bias_channel, live, HAS_BIAS, BD)
    if SOFTPLUS:
        step = softplus(step)
    u = tl.load(x + row * x_row + channels * x_channel, mask=live, other=0.0).to(tl.float32)
    a = tl.load(A + channels[:, None] * A_channel + states[None, :] * A_state, mask=there, other=0.0).to(tl.float32)
    b = by_group(B, row, channels // per_group_B, states, there, B_row, B_group, B_state)
    c = by_group(C, row, channels // per_group_C, states, there, C_row, C_group, C_state)
    at = row * state_row + channels[:, None] * state_channel + states[None, :] * state_state
    h = tl.load(state + at, mask=there, other=0.0).to(tl.float32)
    h = tl.exp2(step[:, None] * (a * 1.4426950408889634)) * h + (step * u)[:, None] * b
    at = row * new_row + channels[:, None] * new_channel + states[None, :] * new_state
    tl.store(new + at, h.to(new.dtype.element_ty), mask=there)
    y = tl.sum(tl.where(there, h * c, 0.0), 1) + optional(D, channels * D_channel, live, HAS_D, BD) * u
    if HAS_Z:
        gate = tl.load(z + row * z_row + channels * z_channel, mask=live, other=0.0).to(tl.float32)
        y *= gate * sigmoid(gate)
    tl.store(out + row * out_row + channels * out_channel, y.to(out.dtype.element_ty), mask=live)
