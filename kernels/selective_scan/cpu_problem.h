// What a scan on the CPU is given, and how it is cut: a part is up to PART channels of one row, read window by window.
//
// Lanes are channels, so that the recurrence over time needs no exchange between lanes. The channels of a part share
// the inputs B and C, which are laid out once per window for all of them.
#pragma once

#include "../parallel.h"
#include "../tiles.h"

namespace scan {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;
using tiles::View;

constexpr int WINDOW = SCAN_WINDOW;  // steps whose states the backward pass holds at a time
constexpr int PART = SCAN_PART;      // channels that share one sum of the gradients of B and C

// B or C. Variable: (rows, groups, states, steps). Constant: one "group" per channel, row and step strides 0.
struct Matrix {
    float* data;
    int64_t row, group, state, step;
};

// The arguments and results, mirrored field by field in _cpu_interface.py. Absent ones have no data.
struct Problem {
    int64_t rows, channels, length, states, groups, parts, threads, softplus, constant_B, constant_C;
    View u, delta, z, A, D, bias, initial, kept;                // arguments
    Matrix B, C;
    View out, last;                                             // results of the forward pass, which reads no further
    View dout, dlast, du, ddelta, dz, dA, dD, dbias, dinitial;  // of the backward pass
    Matrix dB, dC;                                              // a row of them = a part of a row
};

// The channels [first, first + count) of one row, all of one group.
struct Part {
    int64_t row, group, index, first, count;

    Part(const Problem& p, int64_t task) {
        const int64_t per_group = p.channels / p.groups;
        index = task % p.parts;
        group = task / p.parts % p.groups;
        row = task / p.parts / p.groups;
        first = group * per_group + index * PART;
        count = std::min<int64_t>(PART, per_group - index * PART);
    }

    int blocks() const { return (count + W - 1) / W; }
    tiles::Window window(int block, int64_t step, int64_t steps) const {
        return {row, first + block * W, first + count, step, steps};
    }
    // Where the state before the window that begins at the step is kept; `kept` is (rows * windows, channels, states).
    tiles::Window kept(const Problem& p, int block, int64_t step) const {
        const int64_t windows = (p.length - 1) / WINDOW;
        tiles::Window w = window(block, 0, p.states);
        w.row = row * windows + step / WINDOW - 1;
        return w;
    }
};

inline int64_t tasks(const Problem& p) { return p.rows * p.groups * p.parts; }
inline int most_blocks(const Problem& p) {
    return (static_cast<int>(std::min<int64_t>(PART, p.channels / p.groups)) + W - 1) / W;
}
inline int window_length(const Problem& p) { return static_cast<int>(std::min<int64_t>(WINDOW, p.length)); }

// B or C as the inner loop wants it. If both are variable, channels share them: one number per step and state. If one
// is constant it differs between channels, and both are held per lane.
template <bool per_lane>
class Input {
    const Matrix& matrix;
    const Part& part;
    const bool constant;
    const int states;
    const int by_block, by_step;  // strides of the lanes
    Lanes* lanes_ = nullptr;
    float* shared = nullptr;

   public:
    Input(const Problem& p, const Matrix& m, bool is_constant, const Part& of, Scratch& scratch)
        : matrix(m), part(of), constant(is_constant), states(static_cast<int>(p.states)),
          by_block(constant ? states : 0), by_step(constant ? 0 : states),
          lanes_(scratch.take(states * std::max(window_length(p), most_blocks(p)))) {
        if (!per_lane) shared = reinterpret_cast<float*>(lanes_);
        for (int block = 0; constant && block < part.blocks(); ++block)
            tiles::load(lanes_ + block * states, {m.data, 0, m.group, m.state}, part.window(block, 0, states));
    }

    void read(int64_t first, int steps) {
        if (constant) return;
        if (!per_lane && states == W && matrix.step == 1) {
            return tiles::load(lanes_, {matrix.data + part.group * matrix.group, matrix.row, matrix.state, 1}, {part.row, 0, W, first, steps});
        }
        const float* from = matrix.data + part.row * matrix.row + part.group * matrix.group + first * matrix.step;
        for (int t = 0; t < steps; ++t)
            for (int n = 0; n < states; ++n) {
                const float value = from[t * matrix.step + n * matrix.state];
                if constexpr (per_lane) lanes_[t * states + n] = lanes::all(value);
                else shared[t * states + n] = value;
            }
    }

    auto at(int block, int t, int n) const {
        if constexpr (per_lane) return lanes_[block * by_block + t * by_step + n];
        else return shared[t * states + n];
    }
};

// delta -> the step size d; where asked for, also its derivative by delta.
__attribute__((noinline)) inline void step_sizes(const Problem& p, const lanes::Exp2& exp2, Lanes bias, int steps,
                                                 Lanes* d, Lanes* spare, Lanes* slope) {
    for (int t = 0; t < steps; ++t) d[t] += bias;
    for (int t = 0; slope && t < steps; ++t) slope[t] = p.softplus ? lanes::sigmoid(exp2, d[t]) : lanes::all(1.0f);
    if (p.softplus) lanes::softplus(exp2, steps, d, spare);
}

// The largest absolute value in each lane; a NaN counts as larger than all.
inline Lanes largest(const Lanes* values, int count) {
    lanes::Words most{};
    for (int i = 0; i < count; ++i) {
        const lanes::Words bits = (lanes::Words)lanes::abs(values[i]);
        most = most > bits ? most : bits;
    }
    return (Lanes)most;
}

// Whether every product of a step size and a rate is within what Exp2 can do.
inline bool all_near(const Lanes* d, int steps, const Lanes* rate, int states) {
    const lanes::Words near = largest(d, steps) * largest(rate, states) <= lanes::NEAR;
    int32_t all = -1;
    for (int i = 0; i < W; ++i) all &= near[i];
    return all != 0;
}

}  // namespace scan
