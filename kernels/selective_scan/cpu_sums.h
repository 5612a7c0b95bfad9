// Where the backward pass gathers the gradients that are sums: over time, or over channels.
#pragma once

#include "cpu_problem.h"

namespace scan {

// Sums over time of so many terms per channel, as exact over long times as over short ones: the terms of a few steps
// are added plainly, then folded into a total that carries its rounding error along (Kahan).
class TimeSums {
    const int count;
    Lanes *recent, *total, *lost;  // [term], [block][term]

   public:
    static int64_t size(const Problem& p, int64_t count) { return count * (1 + 2 * most_blocks(p)); }

    TimeSums(const Problem& p, int64_t terms, Scratch& scratch) : count(static_cast<int>(terms)) {
        recent = scratch.take(size(p, count));
        total = recent + count;
        lost = total + most_blocks(p) * count;
        std::fill_n(recent, size(p, count), Lanes{});
    }

    Lanes& operator[](int term) { return recent[term]; }

    void fold(int block) {
        for (int i = 0; i < count; ++i) {
            Lanes &sum = total[block * count + i], &rest = lost[block * count + i];
            const Lanes term = recent[i] - rest, next = sum + term;
            rest = (next - sum) - term;
            sum = next;
            recent[i] = Lanes{};
        }
    }

    void write(const View& view, const Part& part) const {
        for (int block = 0; view && block < part.blocks(); ++block)
            tiles::store(total + block * count, view, part.window(block, 0, count));
    }
};

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
        return window_length(p) * ((p.states + W - 1) / W) + TimeSums::size(p, p.states);
    }

    InputGradient(const Problem& p, const Matrix& m, bool is_constant, Scratch& scratch)
        : matrix(m), constant(is_constant), states(static_cast<int>(p.states)), padded((states + W - 1) / W * W),
          over_channels(reinterpret_cast<float*>(scratch.take(window_length(p) * (padded / W)))),
          over_time(p, states, scratch) {}

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
        if (constant) over_time.write({matrix.data, matrix.row, matrix.group, matrix.state}, part);
    }
};

}  // namespace scan
