// The causal convolution in float32 on the CPU, forward and backward, behind a plain C interface.
//
// Lanes are channels. `columns` are what the filter reads: the initial states, then x. Column c is step
// c - (width - 1).
#include "../sums.h"
#include "../tiles.h"

namespace conv {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;
using tiles::View;

constexpr int WINDOW = 64;  // steps at a time

// The arguments and results, mirrored field by field in cpu.py. Absent ones have no data.
struct Problem {
    int64_t rows, channels, length, width, threads, silu;
    View x, weight, bias, initial;
    View out;
    View dout, dx, dweight, dbias, dinitial;
};

// W channels of one row.
class Block {
   protected:
    const Problem& p;
    const int width, history;
    const int64_t row, channel;
    Lanes *weight, *columns, *y;  // [tap], [history + step], [step]
    Lanes bias{};
    const lanes::Exp2 exp2{};

    tiles::Window window(int64_t step, int64_t steps) const {
        return {row, channel, p.channels, step, steps};
    }

    // The columns from `first` on, as many as `count` steps need.
    void read_columns(int64_t first, int count) {
        const int given = static_cast<int>(std::max<int64_t>(0, history - first));  // columns before the first step
        if (given > 0) tiles::load_or_zero(columns, p.initial, window(first, given));
        tiles::load(columns + given, p.x, window(first + given - history, history - given + count));
    }

    void convolve(int steps) {
        for (int t = 0; t < steps; ++t) {
            y[t] = bias;
            for (int k = 0; k < width; ++k) y[t] += weight[k] * columns[t + k];
        }
    }

   public:
    static int64_t blocks(const Problem& p) { return (p.channels + W - 1) / W; }
    static int64_t tasks(const Problem& p) { return p.rows * blocks(p); }

    Block(const Problem& problem, int64_t task, Scratch& scratch)
        : p(problem), width(static_cast<int>(p.width)), history(width - 1), row(task / blocks(p)),
          channel(task % blocks(p) * W), weight(scratch.take(width)), columns(scratch.take(history + WINDOW)),
          y(scratch.take(WINDOW)) {
        tiles::load(weight, p.weight, window(0, width));
        tiles::load_or_zero(&bias, p.bias, window(0, 1));
    }
};

struct Forward : Block {
    using Block::Block;

    void run() {
        for (int64_t first = 0; first < p.length; first += WINDOW) {
            const int steps = static_cast<int>(std::min<int64_t>(WINDOW, p.length - first));
            read_columns(first, steps);
            convolve(steps);
            for (int t = 0; p.silu && t < steps; ++t) y[t] *= lanes::sigmoid(exp2, y[t]);
            tiles::store(y, p.out, window(first, steps));
        }
    }
};

// From the last window to the first. The gradient of column c is the sum over taps k of weight_k g_{c-k}, where g_t is
// the gradient of y_t: of a window's own columns all but the first `history` are complete once it is read.
class Backward : public Block {
    Lanes *g, *dx;  // [step + history]: beyond the window, what comes after it; [step]
    sums::TimeSums dweight, dbias;

   public:
    Backward(const Problem& problem, int64_t task, Scratch& scratch)
        : Block(problem, task, scratch), g(scratch.take(WINDOW + 2 * width)), dx(scratch.take(WINDOW + width)),
          dweight(1, width, scratch), dbias(1, 1, scratch) {}

    void run() {
        std::fill_n(g, WINDOW + 2 * width, Lanes{});
        for (int64_t first = (p.length - 1) / WINDOW * WINDOW; first >= 0; first -= WINDOW)
            run_window(first, static_cast<int>(std::min<int64_t>(WINDOW, p.length - first)));
        if (p.dinitial && history > 0) {
            std::copy_backward(g, g + history, g + 2 * history);
            std::fill_n(g, history, Lanes{});
            gather(history);
            tiles::store(dx, p.dinitial, window(0, history));
        }
        tiles::store(dweight.total(0), p.dweight, window(0, width));
        if (p.dbias) tiles::store(dbias.total(0), p.dbias, window(0, 1));
    }

   private:
    void run_window(int64_t first, int steps) {
        read_columns(first, steps);
        convolve(steps);
        std::copy_backward(g, g + history, g + steps + history);
        tiles::load(g, p.dout, window(first, steps));
        if (p.silu)
            for (int t = 0; t < steps; ++t) {
                const Lanes s = lanes::sigmoid(exp2, y[t]);
                g[t] *= s * (1.0f + y[t] * (1.0f - s));
            }
        for (int t = 0; t < steps; ++t) {
            for (int k = 0; k < width; ++k) dweight[k] += g[t] * columns[t + k];
            dbias[0] += g[t];
            if (t % sums::FOLD == sums::FOLD - 1 || t == steps - 1) {
                dweight.fold(0);
                dbias.fold(0);
            }
        }
        gather(steps);
        tiles::store(dx, p.dx, window(first, steps));
    }

    // dx_t = sum_k weight_k g_{t + history - k}
    void gather(int steps) {
        for (int t = 0; t < steps; ++t) {
            dx[t] = Lanes{};
            for (int k = 0; k < width; ++k) dx[t] += weight[k] * g[t + history - k];
        }
    }
};

template <class Pass>
int run(const Problem& p) {
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, task, scratch).run(); };
    return parallel::run(Pass::tasks(p), p.threads, work) ? 0 : 1;
}

}  // namespace conv

// Both return 0, or 1 if there was not enough memory.
extern "C" int causal_conv1d_forward(const conv::Problem* p) { return conv::run<conv::Forward>(*p); }
extern "C" int causal_conv1d_backward(const conv::Problem* p) { return conv::run<conv::Backward>(*p); }
