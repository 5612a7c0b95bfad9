"""Additive attention in Triton's language. Import this only where Triton is.

Tiles of terms are (BT, BS, HP): queries, keys, and all hidden units of one row. Scores are in units of log 2; `lse` is
the logarithm of the sum of their powers, and infinite where a row has no real key: all weights are 0 then. Offsets
are 64-bit.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kernels.triton_functions import tanh


@triton.jit
def place_of(size, B: tl.constexpr):
    """Of this program: row, which block of the row, its B positions, and which of these there are."""
    blocks = tl.cdiv(size, B)
    row, block = (tl.program_id(0) // blocks).to(tl.int64), (tl.program_id(0) % blocks).to(tl.int64)
    positions = block * B + tl.arange(0, B)
    return row, block, positions, positions < size


@triton.jit
def rows_of(base, row, positions, there, features, width, s_row, s_position, s_feature):
    """(positions, features) of a (B, positions, features) tensor as float32; 0 outside."""
    offsets = row * s_row + positions[:, None] * s_position + features[None, :] * s_feature
    return tl.load(base + offsets, mask=there[:, None] & (features < width)[None, :], other=0.0).to(tl.float32)


@triton.jit
def real_keys(mask, row, keys, S, mask_row, mask_key, HAS_MASK: tl.constexpr):
    """(BS,): which of the keys there are."""
    there = keys < S
    if HAS_MASK:
        there = there & (tl.load(mask + row * mask_row + keys * mask_key, mask=there, other=0) != 0)
    return there


@triton.jit
def terms(query, key):
    """(BT, BS, HP): tanh(q + k)."""
    return tanh(query[:, None, :] + key[None, :, :])


@triton.jit
def scores(term, v, real):
    """(BT, BS) in units of log 2; minus infinity where a key is not real."""
    score = tl.sum(term * v[None, None, :], 2) * 1.4426950408889634
    return tl.where(real[None, :], score, float("-inf"))


@triton.jit
def forward(
    query, key, value, v, mask, context, lse, T, S, H, E,
    q_row, q_query, q_unit, k_row, k_key, k_unit, value_row, value_key, value_feature, v_unit, mask_row, mask_key,
    HAS_MASK: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """context (B, T, E) and lse (B, T), both contiguous float32; a program has BT queries and goes through the keys."""
    row, _, queries, live = place_of(T, BT)
    units, features = tl.arange(0, HP).to(tl.int64), tl.arange(0, EP).to(tl.int64)
    weight = tl.load(v + units * v_unit, mask=units < H, other=0.0).to(tl.float32)
    q = rows_of(query, row, queries, live, units, H, q_row, q_query, q_unit)
    most, total = tl.full((BT,), float("-inf"), tl.float32), tl.zeros((BT,), tl.float32)
    sum_value = tl.zeros((BT, EP), tl.float32)
    for block in range(tl.cdiv(S, BS)):
        keys = block * BS + tl.arange(0, BS).to(tl.int64)
        real = real_keys(mask, row, keys, S, mask_row, mask_key, HAS_MASK)
        k = rows_of(key, row, keys, real, units, H, k_row, k_key, k_unit)
        score = scores(terms(q, k), weight, real)
        higher = tl.maximum(most, tl.max(score, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        power, before = tl.exp2(score - level[:, None]), tl.exp2(most - level)
        values = rows_of(value, row, keys, real, features, E, value_row, value_key, value_feature)
        sum_value = sum_value * before[:, None] + tl.sum(power[:, :, None] * values[None, :, :], 1)
        total = total * before + tl.sum(power, 1)
        most = higher
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    at = row * T + queries
    within = live[:, None] & (features < E)[None, :]
    tl.store(context + at[:, None] * E + features[None, :], sum_value / total[:, None], mask=within)
    tl.store(lse + at, tl.where(empty, float("inf"), most + tl.log2(total)), mask=live)


@triton.jit
def weights_and_gradients(term, v, real, live, dcontext, value, level, inner):
    """(BT, BS) each: the weights, and the gradients of the scores."""
    weight = tl.exp2(scores(term, v, real) - level[:, None])
    weight = tl.where(live[:, None] & real[None, :], weight, 0.0)
    at_weight = tl.sum(dcontext[:, None, :] * value[None, :, :], 2)
    return weight, weight * (at_weight - inner[:, None])


@triton.jit
def backward_of_queries(
    query, key, value, v, mask, lse, inner, dcontext, dquery, dv, T, S, H, E,
    q_row, q_query, q_unit, k_row, k_key, k_unit, value_row, value_key, value_feature, v_unit, mask_row, mask_key,
    dc_row, dc_query, dc_feature, dq_row, dq_query, dq_unit,
    HAS_MASK: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """dquery, and of each block of queries the sum dv (B, blocks, H). inner (B, T): dcontext . context."""
    row, part, queries, live = place_of(T, BT)
    units, features = tl.arange(0, HP).to(tl.int64), tl.arange(0, EP).to(tl.int64)
    weight = tl.load(v + units * v_unit, mask=units < H, other=0.0).to(tl.float32)
    q = rows_of(query, row, queries, live, units, H, q_row, q_query, q_unit)
    dc = rows_of(dcontext, row, queries, live, features, E, dc_row, dc_query, dc_feature)
    level = tl.load(lse + row * T + queries, mask=live, other=float("inf"))
    expected = tl.load(inner + row * T + queries, mask=live, other=0.0)
    sum_query, sum_v = tl.zeros((BT, HP), tl.float32), tl.zeros((HP,), tl.float32)
    for block in range(tl.cdiv(S, BS)):
        keys = block * BS + tl.arange(0, BS).to(tl.int64)
        real = real_keys(mask, row, keys, S, mask_row, mask_key, HAS_MASK)
        k = rows_of(key, row, keys, real, units, H, k_row, k_key, k_unit)
        values = rows_of(value, row, keys, real, features, E, value_row, value_key, value_feature)
        term = terms(q, k)
        _, at_score = weights_and_gradients(term, weight, real, live, dc, values, level, expected)
        sum_query += tl.sum(at_score[:, :, None] * (1.0 - term * term), 1)
        sum_v += tl.sum(tl.sum(at_score[:, :, None] * term, 1), 0)
    at = row * dq_row + queries[:, None] * dq_query + units[None, :] * dq_unit
    within = live[:, None] & (units < H)[None, :]
    tl.store(dquery + at, (sum_query * weight[None, :]).to(dquery.dtype.element_ty), mask=within)
    tl.store(dv + (row * tl.cdiv(T, BT) + part) * H + units, sum_v, mask=units < H)


@triton.jit
def backward_of_keys(
    query, key, value, v, mask, lse, inner, dcontext, dkey, dvalue, T, S, H, E,
    q_row, q_query, q_unit, k_row, k_key, k_unit, value_row, value_key, value_feature, v_unit, mask_row, mask_key,
    dc_row, dc_query, dc_feature, dk_row, dk_key, dk_unit, dvalue_row, dvalue_key, dvalue_feature,
    HAS_MASK: tl.constexpr, BT: tl.constexpr, BS: tl.constexpr, HP: tl.constexpr, EP: tl.constexpr,
):  # fmt: skip
    """dkey and dvalue; a program has BS keys and goes through the queries."""
    row, _, keys, live_keys = place_of(S, BS)
    units, features = tl.arange(0, HP).to(tl.int64), tl.arange(0, EP).to(tl.int64)
    weight = tl.load(v + units * v_unit, mask=units < H, other=0.0).to(tl.float32)
    real = real_keys(mask, row, keys, S, mask_row, mask_key, HAS_MASK)
    k = rows_of(key, row, keys, real, units, H, k_row, k_key, k_unit)
    values = rows_of(value, row, keys, real, features, E, value_row, value_key, value_feature)
    sum_key, sum_value = tl.zeros((BS, HP), tl.float32), tl.zeros((BS, EP), tl.float32)
    for block in range(tl.cdiv(T, BT)):
        queries = block * BT + tl.arange(0, BT).to(tl.int64)
        live = queries < T
        q = rows_of(query, row, queries, live, units, H, q_row, q_query, q_unit)
        dc = rows_of(dcontext, row, queries, live, features, E, dc_row, dc_query, dc_feature)
        level = tl.load(lse + row * T + queries, mask=live, other=float("inf"))
        expected = tl.load(inner + row * T + queries, mask=live, other=0.0)
        term = terms(q, k)
        share, at_score = weights_and_gradients(term, weight, real, live, dc, values, level, expected)
        sum_key += tl.sum(at_score[:, :, None] * (1.0 - term * term), 0)
        sum_value += tl.sum(share[:, :, None] * dc[:, None, :], 0)
    at = row * dk_row + keys[:, None] * dk_key + units[None, :] * dk_unit
    within = live_keys[:, None] & (units < H)[None, :]
    tl.store(dkey + at, (sum_key * weight[None, :]).to(dkey.dtype.element_ty), mask=within)
    at = row * dvalue_row + keys[:, None] * dvalue_key + features[None, :] * dvalue_feature
    within = live_keys[:, None] & (features < E)[None, :]
    tl.store(dvalue + at, sum_value.to(dvalue.dtype.element_ty), mask=within)
