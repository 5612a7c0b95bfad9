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

// The gradient of B or C. Variable: for each step and state of a window, a sum over the part's channels, of which lanes
// are added up last. Constant: for each channel and state, a sum over time.
class InputGradient {
    const Matrix& matrix;
    const bool constant;
    const int states;
    Lanes* over_channels;  // [step][state]
    TimeSums over_time;

   public:
    InputGradient(const Problem& p, const Matrix& m, bool is_constant, Scratch& scratch)
        : matrix(m), constant(is_constant), states(static_cast<int>(p.states)),
          over_channels(scratch.take(window_length(p) * p.states + W)), over_time(most_blocks(p), states, scratch) {}

    void clear(int steps) {
        if (!constant) std::fill_n(over_channels, steps * states, Lanes{});
    }

    // Where to add the terms of step t, one per state.
    Lanes* terms(int t) { return constant ? &over_time[0] : over_channels + t * states; }

    void fold(int block) {
        if (constant) over_time.fold(block);
    }

    void write_window(const Problem& p, const Part& part, int64_t first, int steps) {
        if (constant) return;
        float* to = matrix.data + (part.index * p.rows + part.row) * matrix.row + part.group * matrix.group;
        for (int i = 0; i < steps * states; i += W) {
            const Lanes sums = lanes::sum_each(over_channels + i);
            for (int j = i; j < std::min(i + W, steps * states); ++j)
                to[(first + j / states) * matrix.step + j % states * matrix.state] = sums[j - i];
        }
    }

    void write_total(const Part& part) const {
        if (constant) write(over_time, {matrix.data, matrix.row, matrix.group, matrix.state}, part, states);
    }
};

}  // namespace scan
