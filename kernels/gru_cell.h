// What the kernels of gated recurrent units share: a few rows of a batch times a matrix, and one step of the cell.
//
// Lanes are features, whose number is a multiple of 16.
#pragma once

#include "functions.h"
#include "parallel.h"

namespace gru {

using lanes::Lanes;
using lanes::W;

inline Lanes at(const float* from, int64_t i) { return lanes::load(from + i * W); }
inline void put(float* to, int64_t i, Lanes value) { lanes::store(to + i * W, value); }
inline void add(float* to, int64_t i, Lanes value) { put(to, i, at(to, i) + value); }

// Rows that advance together, so that a matrix is read once for all of them.
constexpr int MOST_TOGETHER = 4;

inline int64_t rows_together(int64_t rows, int64_t threads) {
    return std::min<int64_t>(MOST_TOGETHER, (rows + threads - 1) / threads);
}

// VECTORS of each row of `to` += x (inner) times matrix (inner, count), in registers.
template <int ROWS, int VECTORS>
LANES_INLINE void accumulate_block(
    float* const* to, const float* const* x, const float* matrix, int64_t inner, int64_t count
) {
    Lanes sums[ROWS][VECTORS]{};
    for (int64_t j = 0; j < inner; ++j) {
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) {
            const Lanes column = at(matrix + j * count, k);
            LANES_UNROLL
            for (int r = 0; r < ROWS; ++r) sums[r][k] += x[r][j] * column;
        }
    }
    for (int r = 0; r < ROWS; ++r) {
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) add(to[r], k, sums[r][k]);
    }
}

// All columns from i on: VECTORS at a time, and what is left by fewer.
template <int ROWS, int VECTORS>
void accumulate_columns(
    float* const* to, const float* const* x, const float* matrix, int64_t inner, int64_t count, int64_t i
) {
    for (; i + VECTORS * W <= count; i += VECTORS * W) {
        float* block[ROWS];
        for (int r = 0; r < ROWS; ++r) block[r] = to[r] + i;
        accumulate_block<ROWS, VECTORS>(block, x, matrix + i, inner, count);
    }
    if constexpr (VECTORS > 1) accumulate_columns<ROWS, VECTORS / 2>(to, x, matrix, inner, count, i);
}

template <int ROWS>
void accumulate_rows(float* const* to, const float* const* x, const float* matrix, int64_t inner, int64_t count) {
    constexpr int VECTORS = W / std::max(2, ROWS);
    constexpr int64_t FEW = 64;  // sums of sums, as one long sum would lose digits
    for (int64_t from = 0; from < inner; from += FEW) {
        const float* part[ROWS];
        for (int r = 0; r < ROWS; ++r) part[r] = x[r] + from;
        accumulate_columns<ROWS, VECTORS>(to, part, matrix + from * count, std::min(FEW, inner - from), count, 0);
    }
}

// to[r] (count) += x[r] (inner) times matrix (inner, count), for each row; the bits do not depend on how many there are.
inline void accumulate(
    int rows, float* const* to, const float* const* x, const float* matrix, int64_t inner, int64_t count
) {
    int r = 0;
    for (; r + 4 <= rows; r += 4) accumulate_rows<4>(to + r, x + r, matrix, inner, count);
    for (; r + 2 <= rows; r += 2) accumulate_rows<2>(to + r, x + r, matrix, inner, count);
    for (; r < rows; ++r) accumulate_rows<1>(to + r, x + r, matrix, inner, count);
}

// One step of one row of H features: what inputs and state add to reset, update and candidate (3H each) make the next
// state. `parts` (4H) keeps the three gates and what reset multiplies; it may be where `gates` are.
inline void advance(
    const lanes::Exp2& exp2, int64_t H, const float* gates, const float* product, const float* before, float* parts,
    float* after
) {
    const int64_t n = H / W;
    for (int64_t i = 0; i < n; ++i) {
        const Lanes reset = lanes::sigmoid(exp2, at(gates, i) + at(product, i));
        const Lanes update = lanes::sigmoid(exp2, at(gates, n + i) + at(product, n + i));
        const Lanes candidate = lanes::tanh(at(gates, 2 * n + i) + reset * at(product, 2 * n + i));
        put(parts, i, reset);
        put(parts, n + i, update);
        put(parts, 2 * n + i, candidate);
        put(parts, 3 * n + i, at(product, 2 * n + i));
        put(after, i, candidate + update * (at(before, i) - candidate));
    }
}

// The gradients of that step's gates and product (3H each) from that of its state, which `dh` and `doutput` add up to.
// What is left in `dh` is the gradient of the state before, but for what goes through the product.
inline void retreat(
    int64_t H, const float* parts, const float* before, const float* doutput, float* dh, float* dgates, float* dproduct
) {
    const int64_t n = H / W;
    for (int64_t i = 0; i < n; ++i) {
        const Lanes reset = at(parts, i), update = at(parts, n + i), candidate = at(parts, 2 * n + i);
        const Lanes d = at(dh, i) + at(doutput, i);
        const Lanes dcandidate = d * (1.0f - update) * (1.0f - candidate * candidate);
        const Lanes dreset = dcandidate * at(parts, 3 * n + i) * reset * (1.0f - reset);
        const Lanes dupdate = d * (at(before, i) - candidate) * update * (1.0f - update);
        for (float* to : {dgates, dproduct}) {
            put(to, i, dreset);
            put(to, n + i, dupdate);
        }
        put(dgates, 2 * n + i, dcandidate);
        put(dproduct, 2 * n + i, dcandidate * reset);
        put(dh, i, d * update);
    }
}

}  // namespace gru
