// The causal convolution in float32 on the CPU, forward and backward, as operators of torch.
//
// Lanes are channels. `columns` are what the filter reads: the initial states, then x. Column c is step
// c - (width - 1). Where the channels of a step lie side by side, all of a part are read before the next steps are, as
// memory has them; else W channels make a part, read many steps at a time, so that lines of memory are used whole.
#include "../functions.h"
#include "../operators.h"
#include "../sums.h"

namespace conv {

using lanes::Lanes;
using lanes::W;
using operators::float_view;
using operators::Optional;
using operators::Tensor;
using parallel::Scratch;
using tiles::Columns;
using tiles::View;

// The arguments and results. Absent ones have no data.
struct Problem {
    int64_t rows, channels, length, width;
    bool silu;
    View x, weight, bias, initial;
    View out{};
    View dout{}, dx{}, dweight{}, dbias{}, dinitial{};  // dweight and dbias: of each segment of each row
    int64_t threads, segments;  // pieces of time of a row: a matter of its shape alone, as sums over time are

    Problem(const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& initial, bool silu)
        : rows(x.size(0)), channels(x.size(1)), length(x.size(2)), width(weight.size(1)), silu(silu), x(float_view(x)),
          weight(float_view(weight)), bias(float_view(bias)), initial(float_view(initial)),
          threads(operators::threads(x.numel() * (width + 8))) {
        constexpr int64_t MOST_TASKS = 64, LEAST_STEPS = 256;
        segments = std::max<int64_t>(1, std::min(MOST_TASKS / std::max<int64_t>(1, rows), length / LEAST_STEPS));
    }

    bool side_by_side() const { return x.channel == 1; }
    int window() const { return side_by_side() ? 32 : 64; }      // steps at a time
    int64_t part() const { return side_by_side() ? 256 : W; }   // channels of a task
    int64_t parts() const { return (channels + part() - 1) / part(); }
    int64_t segment() const { return (length + segments - 1) / segments; }  // steps of a task
};

// The taps of W channels, copied to where the compiler can keep them in registers if it knows how many (else fixed = 0).
template <int fixed>
class Filter {
    Lanes own[fixed ? fixed : 1];
    const Lanes* given;

   public:
    const int width;
    const Lanes bias;

    Filter(const Lanes* taps, int count) : given(taps), width(fixed ? fixed : count), bias(taps[count]) {
        for (int k = 0; k < fixed; ++k) own[k] = taps[k];
    }
    Lanes operator[](int k) const { return fixed ? own[k] : given[k]; }

    // Of what begins at `from`, the taps going up or down.
    template <class Read>
    Lanes up(Lanes sum, const Read& columns, int from) const {
        LANES_UNROLL
        for (int k = 0; k < width; ++k) sum += (*this)[k] * columns[from + k];
        return sum;
    }
    Lanes down(const Lanes* g, int from) const {
        Lanes sum{};
        LANES_UNROLL
        for (int k = 0; k < width; ++k) sum += (*this)[k] * g[from + width - 1 - k];
        return sum;
    }
};

// The channels [first, last) of one row over the steps [begin, end).
class Pass {
   protected:
    const Problem& p;
    const int width, history, most;  // the most steps at a time
    const int64_t row, segment, begin, end, first, last;
    Lanes *filters, *columns, *tile;  // [block][tap, then the bias], [history + step], [step]
    const lanes::Exp2 exp2{};

    Pass(const Problem& problem, int64_t task, Scratch& scratch)
        : p(problem), width(static_cast<int>(p.width)), history(width - 1), most(std::max(p.window(), history)),
          row(task / p.parts() / p.segments), segment(task / p.parts() % p.segments), begin(segment * p.segment()),
          end(std::min(begin + p.segment(), p.length)), first(task % p.parts() * p.part()),
          last(std::min(first + p.part(), p.channels)), filters(scratch.take(most_blocks() * (width + 1))),
          columns(scratch.take(history + most)), tile(scratch.take(most)) {
        for (int block = 0; block < blocks(); ++block) {
            Lanes* filter = filters + block * (width + 1);
            tiles::load(filter, p.weight, window(block, 0, width));
            tiles::load_or_zero(filter + width, p.bias, window(block, 0, 1));
        }
    }

    int blocks() const { return static_cast<int>((last - first + W - 1) / W); }
    int most_blocks() const { return static_cast<int>(p.part() / W); }
    int steps_from(int64_t step) const { return static_cast<int>(std::min<int64_t>(p.window(), end - step)); }

    tiles::Window window(int block, int64_t step, int64_t steps) const {
        return {row, first + block * W, last, step, steps};
    }

    template <int fixed>
    Filter<fixed> filter(int block) const {
        return {filters + block * (width + 1), width};
    }

    // What the filter reads in these steps.
    Columns read_columns(int block, int64_t step, int steps) const {
        const int given = static_cast<int>(std::max<int64_t>(0, history - step));  // columns before the first step
        const auto rest = window(block, step + given - history, history - given + steps);
        if (given == 0) return Columns::read(p.x, rest, columns);
        tiles::load_or_zero(columns, p.initial, window(block, step, given));
        tiles::load(columns + given, p.x, rest);
        return Columns::of(columns);
    }
};

struct Forward : Pass {
    Forward(const Problem& problem, int64_t task, Scratch& scratch) : Pass(problem, task, scratch) {}

    template <int fixed>
    void run() {
        for (int64_t step = begin; step < end; step += p.window())
            for (int block = 0; block < blocks(); ++block) run_window(filter<fixed>(block), block, step, steps_from(step));
    }

   private:
    template <int fixed>
    void run_window(const Filter<fixed>& filter, int block, int64_t step, int steps) {
        const auto window = Pass::window(block, step, steps);
        const Columns read = read_columns(block, step, steps), out = Columns::open(p.out, window, tile);
        for (int t = 0; t < steps; ++t) {
            const Lanes y = filter.up(filter.bias, read, t);
            out.set(t, p.silu ? y * lanes::sigmoid(exp2, y) : y);
        }
        Columns::close(p.out, window, tile);
    }
};

// From the last window to the first. The gradient of column c is the sum over taps k of weight_k g_{c-k}, where g_t is
// the gradient of y_t, what the filter gave: it takes those of the `history` steps behind a window as well.
class Backward : public Pass {
    Lanes *g, *behind;  // [step + history] of a window; [block][step]
    sums::TimeSums sums;

   public:
    Backward(const Problem& problem, int64_t task, Scratch& scratch)
        : Pass(problem, task, scratch), g(scratch.take(most + history)), behind(scratch.take(most_blocks() * history)),
          sums(most_blocks(), width + 1, scratch) {}

    template <int fixed>
    void run() {
        for (int block = 0; block < blocks(); ++block) look_behind(filter<fixed>(block), block);
        for (int64_t step = begin + (end - 1 - begin) / p.window() * p.window(); step >= begin; step -= p.window())
            for (int block = 0; block < blocks(); ++block) run_window(filter<fixed>(block), block, step, steps_from(step));
        for (int block = 0; block < blocks(); ++block) finish(filter<fixed>(block), block);
    }

   private:
    template <int fixed>
    void look_behind(const Filter<fixed>& filter, int block) {
        const int steps = static_cast<int>(std::min<int64_t>(history, p.length - end));
        std::fill_n(g, history, Lanes{});
        if (steps > 0) differentiate(filter, read_columns(block, end, steps), block, end, steps, {});
        std::copy_n(g, history, behind + block * history);
    }

    template <int fixed>
    void run_window(const Filter<fixed>& filter, int block, int64_t step, int steps) {
        const auto next = window(block, step - p.window(), step > begin ? p.window() : 0);
        const Columns read = read_columns(block, step, steps);
        std::copy_n(behind + block * history, history, g + steps);
        differentiate(filter, read, block, step, steps, {{p.x, next}, {p.dout, next}, {p.dx, next}});
        std::copy_n(g, history, behind + block * history);
        for (int from = 0; from < steps; from += sums::FOLD) add_up(filter, read, block, from, std::min(from + sums::FOLD, steps));
        gather(filter, p.dx, window(block, step, steps));
    }

    // The gradients of y in these steps, from those of out, while what will be wanted next is fetched.
    template <int fixed>
    void differentiate(const Filter<fixed>& filter, const Columns& read, int block, int64_t step, int steps,
                       std::initializer_list<tiles::Ahead> next) {
        const Columns dout = Columns::read(p.dout, window(block, step, steps), tile);
        for (int t = 0; t < steps; ++t) {
            for (const auto& what : next) what.fetch(t);
            g[t] = dout[t];
            if (!p.silu) continue;
            const Lanes y = filter.up(filter.bias, read, t), s = lanes::sigmoid(exp2, y);
            g[t] *= s * (1.0f + y * (1.0f - s));
        }
    }

    // The gradients of the taps and of the bias, from a few steps.
    template <int fixed>
    void add_up(const Filter<fixed>& filter, const Columns& read, int block, int from, int to) {
        constexpr int few = fixed ? fixed : 1;  // taps at a time
        Lanes of_bias{};
        for (int t = from; t < to; ++t) of_bias += g[t];
        sums[width] = of_bias;
        for (int k = 0; k < filter.width; k += few) {
            Lanes of_taps[few]{};
            for (int t = from; t < to; ++t)
                LANES_UNROLL
                for (int i = 0; i < few; ++i) of_taps[i] += g[t] * read[t + k + i];
            std::copy_n(of_taps, few, &sums[k]);
        }
        sums.fold(block);
    }

    // The gradients of the columns that are the window's steps.
    template <int fixed>
    void gather(const Filter<fixed>& filter, const View& to, const tiles::Window& window) {
        const Columns rows = Columns::open(to, window, tile);
        for (int t = 0; t < window.steps; ++t) rows.set(t, filter.down(g, t));
        Columns::close(to, window, tile);
    }

    template <int fixed>
    void finish(const Filter<fixed>& filter, int block) {
        if (p.dinitial && begin == 0) {
            std::fill_n(g, history, Lanes{});
            std::copy_n(behind + block * history, history, g + history);
            gather(filter, p.dinitial, window(block, 0, history));
        }
        auto place = window(block, 0, width);
        place.row = row * p.segments + segment;
        tiles::store(sums.total(block), p.dweight, place);
        place.steps = 1;
        if (p.dbias) tiles::store(sums.total(block) + width, p.dbias, place);
    }
};

template <class Pass>
void run(Pass pass, int64_t width) {
    if (width == 4) pass.template run<4>();
    else if (width == 3) pass.template run<3>();
    else if (width == 2) pass.template run<2>();
    else pass.template run<0>();
}

template <class Pass>
void solve(const Problem& p) {
    operators::run(p.rows * p.segments * p.parts(), p.threads,
                   [&](int64_t task, Scratch& scratch) { run(Pass(p, task, scratch), p.width); });
}

// As convolve in cpu.py.
std::tuple<Tensor> forward(
    const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& initial, bool silu
) {
    Problem p(x, weight, bias, initial, silu);
    Tensor out = empty_like(x);
    p.out = float_view(out);
    solve<Forward>(p);
    return {std::move(out)};
}

// As convolve_backward in cpu.py.
std::tuple<Tensor, Tensor, Optional, Optional> backward(
    const Tensor& dout, const Tensor& x, const Tensor& weight, const Optional& bias, const Optional& initial, bool silu
) {
    Problem p(x, weight, bias, initial, silu);
    const int64_t parts = p.rows * p.segments;
    Tensor dx = empty_like(x), dweight = operators::empty({parts, p.channels, p.width});
    Optional dbias, dinitial = empty_like(initial);
    if (bias) dbias = operators::empty({parts, p.channels});
    p.dout = float_view(dout), p.dx = float_view(dx), p.dweight = float_view(dweight);
    if (bias) p.dbias = {static_cast<float*>(dbias->data()), p.channels, 1, 0};
    p.dinitial = float_view(dinitial);
    solve<Backward>(p);
    if (bias) dbias = sum_of_first(*dbias);
    return {std::move(dx), sum_of_first(dweight), std::move(dbias), std::move(dinitial)};
}

const auto registered =
    operators::Registration().add<forward>("causal_conv1d_cpu").add<backward>("causal_conv1d_cpu_backward");

}  // namespace conv
