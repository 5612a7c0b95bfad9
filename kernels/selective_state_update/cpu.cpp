// One step of the selective scan in float32 on the CPU, as operators of torch.
//
// Lanes are states: those of a channel lie together in memory, are read once and written once. What a channel has one
// of is computed before and after, for as many channels as there are lanes.
#include "../functions.h"
#include "../operators.h"

namespace update {

using lanes::Lanes;
using lanes::W;
using operators::column_view;
using operators::float_view;
using operators::Optional;
using operators::Tensor;
using tiles::View;

constexpr int64_t RUN = 256;  // channels at a time

// As a View, of a type that is not known yet.
struct States {
    void* data;
    int64_t row, channel, state;

    explicit States(const Tensor& t) : data(t.data()), row(t.strides()[0]), channel(t.strides()[1]), state(t.strides()[2]) {}
};

// The arguments and results. Absent ones have no data. `state` and `next` may be the same. B and C are (rows, groups,
// states).
struct Problem {
    int64_t rows, channels, states, groups, threads;
    bool softplus;
    View A, D, bias, B, C, x, dt, z, out;
    States state, next;
};

int64_t runs(const Problem& p) { return (p.channels + RUN - 1) / RUN; }

// Whether the states of a channel, and what belongs to each, fill lanes and lie side by side.
bool is_whole(const Problem& p) {
    const bool side_by_side = p.A.step == 1 && p.B.step == 1 && p.C.step == 1 && p.state.state == 1 && p.next.state == 1;
    return side_by_side && p.states % W == 0;
}

const lanes::Exp2 exp2;

// `count` <= W numbers that lie `stride` apart; the lanes from `count` on are 0, and are not stored. `whole` says that
// they are W, side by side.
template <bool whole, class Number>
Lanes load(const Number* from, int64_t stride, int count) {
    if constexpr (whole) return lanes::load(from);
    Number numbers[W]{};
    for (int i = 0; i < count; ++i) numbers[i] = from[i * stride];
    return lanes::load(numbers);
}

template <bool whole, class Number>
void store(Number* to, int64_t stride, int count, Lanes v) {
    if constexpr (whole) return lanes::store(to, v);
    Number numbers[W];
    lanes::store(numbers, v);
    for (int i = 0; i < count; ++i) to[i * stride] = numbers[i];
}

template <class Number, bool whole>
class Update {
    const Problem& p;
    const int64_t row, begin, end;  // of the channels

    Number* at(const States& s, int64_t channel) const {
        return static_cast<Number*>(s.data) + row * s.row + channel * s.channel;
    }

    static Lanes read(const float* from, const View& view, int64_t first, int count) {
        return load<whole>(from + first * view.step, view.step, count);
    }

    // Advances the states of a channel; the sum over the lanes of the result is its output.
    __attribute__((always_inline)) Lanes advance(int64_t channel, int64_t group, float dt, float added) const {
        const float *A = p.A.at(row, channel, 0), *B = p.B.at(row, group, 0), *C = p.C.at(row, group, 0);
        const Number* from = at(p.state, channel);
        Number* to = at(p.next, channel);
        Lanes sum{};
        for (int64_t n = 0; n < p.states; n += W) {
            const int count = static_cast<int>(std::min<int64_t>(W, p.states - n));
            const Lanes decay = lanes::exp2_product(lanes::all(dt), read(A, p.A, n, count) * lanes::LOG2E);
            const Lanes old = load<whole>(from + n * p.state.state, p.state.state, count);
            const Lanes h = decay * old + added * read(B, p.B, n, count);
            store<whole>(to + n * p.next.state, p.next.state, count, h);
            sum += h * read(C, p.C, n, count);
        }
        return sum;
    }

    void run_block(int64_t channel) const {
        const tiles::Window window(row, channel, end, 0, 1);
        Lanes x, dt, bias, skip, z, sums[W];
        tiles::load(&x, p.x, window);
        tiles::load(&dt, p.dt, window);
        tiles::load_or_zero(&bias, p.bias, window);
        tiles::load_or_zero(&skip, p.D, window);
        dt += bias;
        if (p.softplus) dt = lanes::softplus(exp2, dt);
        const Lanes added = dt * x;
        const int64_t width = p.channels / p.groups;
        int64_t group = channel / width, end_of_group = (group + 1) * width;
        for (int i = 0; i < W; ++i) {
            if (channel + i == end_of_group) ++group, end_of_group += width;
            sums[i] = i < window.width ? advance(channel + i, group, dt[i], added[i]) : Lanes{};
        }
        Lanes y = lanes::sum_each(sums) + skip * x;
        if (p.z) {
            tiles::load(&z, p.z, window);
            y *= z * lanes::sigmoid(exp2, z);
        }
        tiles::store(&y, p.out, window);
    }

   public:
    Update(const Problem& problem, int64_t task)
        : p(problem), row(task / runs(p)), begin(task % runs(p) * RUN), end(std::min(begin + RUN, p.channels)) {}

    void run() const {
        for (int64_t channel = begin; channel < end; channel += W) run_block(channel);
    }
};

template <class Pass>
void run_all(const Problem& p) {
    operators::run(p.rows * runs(p), p.threads, [&](int64_t task, parallel::Scratch&) { Pass(p, task).run(); });
}

template <class Number>
void run(const Problem& p) {
    return is_whole(p) ? run_all<Update<Number, true>>(p) : run_all<Update<Number, false>>(p);
}

Tensor advance(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
               const Optional& D, const Optional& z, const Optional& bias, bool softplus, const Tensor& next) {
    constexpr void (*types[])(const Problem&) = {run<float>, run<lanes::BFloat16>, run<lanes::Float16>};
    Tensor out = empty_like(x);
    const Problem p{state.size(0), state.size(1), state.size(2), B.size(1), operators::threads(2 * state.numel()),
                    softplus, float_view(A), float_view(D), float_view(bias), float_view(B), float_view(C), column_view(x),
                    column_view(dt), column_view(z), column_view(out), States(state), States(next)};
    types[type(state)](p);
    return out;
}

// As update in cpu.py.
std::tuple<Tensor, Tensor> to_new(
    const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const Optional& D, const Optional& z, const Optional& bias, bool softplus
) {
    Tensor next = empty_like(state), out = advance(state, x, dt, A, B, C, D, z, bias, softplus, next);
    return {std::move(out), std::move(next)};
}

// As update_ in cpu.py.
std::tuple<Tensor> in_place(
    const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
    const Optional& D, const Optional& z, const Optional& bias, bool softplus
) {
    return {advance(state, x, dt, A, B, C, D, z, bias, softplus, state)};
}

const auto registered =
    operators::Registration().add<to_new>("selective_state_update_cpu").add<in_place>("selective_state_update_cpu_");

}  // namespace update
