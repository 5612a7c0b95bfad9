// One step of the causal convolution in float32 on the CPU, behind a plain C interface. Lanes are channels.
#include "../parallel.h"
#include "../tiles.h"

namespace conv_update {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;
using tiles::View;

constexpr int64_t RUN = 256;  // channels at a time

// The arguments and results, mirrored field by field in cpu.py. `columns` are (rows, channels, width - 1).
struct Problem {
    int64_t rows, channels, width, threads, silu;
    View weight, bias, columns, x, out;
};

const lanes::Exp2 exp2;

int64_t runs(const Problem& p) { return (p.channels + RUN - 1) / RUN; }

// The columns before x and x itself are in `read`.
void update(const Problem& p, int64_t row, int64_t channel, int64_t end, Lanes* read, Lanes* weight) {
    const int64_t history = p.width - 1;
    const auto window = [&](int64_t steps) { return tiles::Window(row, channel, end, 0, steps); };
    tiles::load(read, p.columns, window(history));
    tiles::load(read + history, p.x, window(1));
    tiles::load(weight, p.weight, window(p.width));
    Lanes y;
    tiles::load_or_zero(&y, p.bias, window(1));
    for (int k = 0; k < p.width; ++k) y += weight[k] * read[k];
    if (p.silu) y *= lanes::sigmoid(exp2, y);
    tiles::store(&y, p.out, window(1));
    tiles::store(read + 1, p.columns, window(history));
}

int run(const Problem& p) {
    const auto work = [&](int64_t task, Scratch& scratch) {
        const int64_t begin = task % runs(p) * RUN, end = std::min(begin + RUN, p.channels);
        Lanes *read = scratch.take(p.width), *weight = scratch.take(p.width);
        for (int64_t channel = begin; channel < end; channel += W)
            update(p, task / runs(p), channel, end, read, weight);
    };
    return parallel::run(p.rows * runs(p), p.threads, work) ? 0 : 1;
}

}  // namespace conv_update

// Returns 0, or 1 if there was not enough memory.
extern "C" int causal_conv1d_update(const conv_update::Problem* p) { return conv_update::run(*p); }
