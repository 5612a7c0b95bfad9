// Where the backward pass gathers the gradients of B and C.
#pragma once

#include "../sums.h"
#include "cpu_problem.h"

namespace scan {

using sums::TimeSums;

inline void write(const TimeSums& from, const View& to, const Part& part, int terms) {
    for (int block = 0; to && block < part.blocks(); ++block)
        tiles::store(from.total(block), to, part.window(block, 0, terms));
}

// The gradient of B or C. Variable: for each step and state of a window, the sum over the part's channels. Constant: for
// each channel and state, the sum over time.
class InputGradient {
    const Matrix& matrix;
    const bool constant;
    const int states, padded;
    float* over_channels;  // [step][padded state]
    TimeSums over_time;

   public:
    static int64_t size(const Problem& p) {
        return window_length(p) * ((p.states + W - 1) / W) + TimeSums::size(most_blocks(p), p.states);
    }

    InputGradient(const Problem& p, const Matrix& m, bool is_constant, Scratch& scratch)
        : matrix(m), constant(is_constant), states(static_cast<int>(p.states)), padded((states + W - 1) / W * W),
          over_channels(reinterpret_cast<float*>(scratch.take(window_length(p) * (padded / W)))),
          over_time(most_blocks(p), states, scratch) {}

    void clear(int steps) { std::fill_n(over_channels, steps * padded, 0.0f); }

    // The terms of the W states from n on, 0 beyond the last. They are overwritten.
    void add(int t, int n, Lanes terms[W]) {
        if (constant) {
            for (int i = 0; i < std::min(W, states - n); ++i) over_time[n + i] += terms[i];
        } else {
            float* to = over_channels + t * padded + n;
            lanes::store(to, lanes::load(to) + lanes::sum_each(terms));
        }
    }

    void fold(int block) {
        if (constant) over_time.fold(block);
    }

    void write_window(const Problem& p, const Part& part, int64_t first, int steps) const {
        if (constant) return;
        float* to = matrix.data + (part.index * p.rows + part.row) * matrix.row + part.group * matrix.group;
        for (int t = 0; t < steps; ++t)
            for (int n = 0; n < states; ++n)
                to[(first + t) * matrix.step + n * matrix.state] = over_channels[t * padded + n];
    }

    void write_total(const Part& part) const {
        if (constant) write(over_time, {matrix.data, matrix.row, matrix.group, matrix.state}, part, states);
    }
};

}  // namespace scan
