// One step of the causal convolution in float32 on the CPU, as an operator of torch. Lanes are channels.
#include "../functions.h"
#include "../operators.h"

namespace conv_update {

using lanes::Lanes;
using lanes::W;
using operators::column_view;
using operators::float_view;
using operators::Optional;
using operators::Tensor;
using parallel::Scratch;
using tiles::View;

constexpr int64_t RUN = 256;  // channels at a time

// `columns` are (rows, channels, width - 1).
struct Problem {
    int64_t rows, channels, width;
    bool silu;
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

// As update_ in cpu.py.
std::tuple<Tensor> advance(
    const Tensor& x, const Tensor& states, const Tensor& weight, const Optional& bias, bool silu
) {
    Tensor out = empty_like(x);
    const Problem p{x.size(0), x.size(1), weight.size(1), silu, float_view(weight), float_view(bias), float_view(states),
                    column_view(x), column_view(out)};
    operators::run(p.rows * runs(p), operators::threads(x.numel() * (p.width + 8)), [&](int64_t task, Scratch& scratch) {
        const int64_t begin = task % runs(p) * RUN, end = std::min(begin + RUN, p.channels);
        Lanes *read = scratch.take(p.width), *weights = scratch.take(p.width);
        for (int64_t channel = begin; channel < end; channel += W)
            update(p, task / runs(p), channel, end, read, weights);
    });
    return {std::move(out)};
}

const auto registered = operators::Registration().add<advance>("causal_conv1d_update_cpu_");

}  // namespace conv_update
