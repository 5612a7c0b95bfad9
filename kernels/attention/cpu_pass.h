// What both passes of attention on the CPU share: their arguments, products of whole tiles, and copies of heads in rows or
// panels.
#pragma once

#include <cmath>

#include "../functions.h"
#include "../parallel.h"

namespace attention {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;

constexpr int64_t PANEL = 32;               // queries or keys side by side
constexpr int64_t ROWS = W == 16 ? 8 : 4;   // of a tile, whose sums fill the registers

// A (rows, heads, positions, features) tensor of any strides.
struct Heads {
    float* data;
    int64_t row, head, position, feature;

    float* at(int64_t r, int64_t h, int64_t t) const { return data + r * row + h * head + t * position; }
};

// The arguments and results, mirrored field by field in cpu.py.
struct Problem {
    int64_t rows, heads, groups, queries, keys, features, causal, threads;  // heads of the keys, groups of queries each
    Heads query, key, value, out;
    float* normalizer;  // (rows, heads * groups, queries), contiguous: the logarithm of the sum of each softmax
    Heads dout, dquery, dkey, dvalue;

    float scale() const { return 1.0f / std::sqrt(static_cast<float>(features)); }
    int64_t padded() const { return round_up(features, 16); }
    float* normalizers(int64_t row, int64_t head) const { return normalizer + (row * heads * groups + head) * queries; }

    static int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
};

inline float* floats(Scratch& scratch, int64_t count) {
    return reinterpret_cast<float*>(scratch.take((count + W - 1) / W));
}

// to (ROWS, VECTORS lanes) = or += a (ROWS, count) times x (count, VECTORS lanes).
template <int VECTORS>
inline void tile(float* to, int64_t to_row, const float* a, int64_t a_row, int64_t a_column, const float* x,
                 int64_t x_row, int64_t count, bool add) {
    Lanes sums[ROWS][VECTORS]{};
    for (int64_t j = 0; j < count; ++j) {
        Lanes terms[VECTORS];
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) terms[k] = lanes::load(x + j * x_row + k * W);
        LANES_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float factor = a[r * a_row + j * a_column];
            LANES_UNROLL
            for (int k = 0; k < VECTORS; ++k) sums[r][k] += factor * terms[k];
        }
    }
    LANES_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) {  // the sum of many blocks rounds less than one over all
            float* at = to + r * to_row + k * W;
            lanes::store(at, add ? lanes::load(at) + sums[r][k] : sums[r][k]);
        }
    }
}

// A matrix of which the product takes rows and columns as its strides say.
struct Matrix {
    const float* data;
    int64_t row, column;
};

// to (rows, width) = or += a (rows, count) times x (count, width), with rows a multiple of ROWS, width one of W.
inline void product(float* to, int64_t to_row, Matrix a, const float* x, int64_t x_row, int64_t rows, int64_t width,
                    int64_t count, bool add) {
    for (int64_t i = 0; i < width;) {
        const bool pair = i + 2 * W <= width;
        for (int64_t r = 0; r < rows; r += ROWS)
            (pair ? tile<2> : tile<1>)(to + r * to_row + i, to_row, a.data + r * a.row, a.row, a.column, x + i, x_row,
                                       count, add);
        i += pair ? 2 * W : W;
    }
}

// Vectors of one head as rows of `width`, zeros behind each and behind the last; `factor` times what was given.
inline void pack(float* to, int64_t width, const Heads& from, int64_t row, int64_t head, int64_t first, int64_t count,
                 int64_t padded, int64_t features, float factor) {
    constexpr int64_t AHEAD = 32;  // the vectors of one head lie apart, where no processor looks for them
    for (int64_t t = 0; t < padded; ++t, to += width) {
        int64_t e = 0;
        if (t < count) {
            const float* vector = from.at(row, head, first + t);
            for (int64_t i = 0; t + AHEAD < count && i < features; i += 16)
                __builtin_prefetch(vector + AHEAD * from.position + i);
            if (from.feature == 1)
                for (; e + W <= features; e += W) lanes::store(to + e, factor * lanes::load(vector + e));
            for (; e < features; ++e) to[e] = factor * vector[e * from.feature];
        }
        std::fill_n(to + e, width - e, 0.0f);
    }
}

// Rows of `width` to the vectors of one head, from position `first` on, times `factor`.
inline void unpack(const Heads& to, int64_t row, int64_t head, int64_t first, const float* from, int64_t width,
                   int64_t count, int64_t features, float factor) {
    for (int64_t t = 0; t < count; ++t, from += width) {
        float* vector = to.at(row, head, first + t);
        int64_t e = 0;
        if (to.feature == 1)
            for (; e + W <= features; e += W) lanes::store(vector + e, factor * lanes::load(from + e));
        for (; e < features; ++e) vector[e * to.feature] = factor * from[e];
    }
}

// (rows, columns) to (columns, rows), whole squares of both. Inlined, as one of the two is known to the compiler.
LANES_INLINE void turn(float* to, const float* from, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i += W)
        for (int64_t e = 0; e < columns; e += W) {
            Lanes square[W];
            for (int k = 0; k < W; ++k) square[k] = lanes::load(from + (i + k) * columns + e);
            lanes::transpose(square);
            for (int k = 0; k < W; ++k) lanes::store(to + (e + k) * rows + i, square[k]);
        }
}

// What both passes do: scratch memory, exponentials.
class Pass {
   protected:
    const Problem& p;
    const int64_t width, padded_keys;
    float* const spare;  // PANEL rows
    const lanes::Exp2 exp2{};

    Pass(const Problem& problem, Scratch& s)
        : p(problem), width(p.padded()), padded_keys(Problem::round_up(p.keys, PANEL)), spare(floats(s, PANEL * width)) {}

    // e^x for x <= 0, as exact as x is that comes of a score; 0 where it would be less than the least normal float.
    Lanes exp(Lanes x) const { return exp2(lanes::max(lanes::all(-88.0f), x), lanes::all(lanes::LOG2E)); }

    void pack_panels(float* to, const Heads& from, int64_t row, int64_t head, int64_t first, int64_t count,
                     int64_t padded, float factor) const {
        for (int64_t t = 0; t < padded; t += PANEL, to += PANEL * width) {
            pack(spare, width, from, row, head, first + t, count - t, PANEL, p.features, factor);
            turn(to, spare, PANEL, width);
        }
    }

    void unpack_panels(const Heads& to, int64_t row, int64_t head, int64_t first, const float* from, int64_t count,
                       float factor) const {
        for (int64_t t = 0; t < count; t += PANEL, from += PANEL * width) {
            turn(spare, from, width, PANEL);
            unpack(to, row, head, first + t, spare, width, std::min(PANEL, count - t), p.features, factor);
        }
    }
};

}  // namespace attention
