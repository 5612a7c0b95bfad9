// out and h_L from the arguments, and the states between windows where the backward pass will want them.
#pragma once

#include "cpu_segments.h"
#include "cpu_states.h"

namespace scan {

constexpr int STRETCH = 4 * WINDOW;   // steps to read at a time
constexpr int64_t LARGE = 4ll << 20;  // bytes of out of which a cache would keep little until they are read

template <bool per_lane>
class Forward {
    const Problem& p;
    const Part part;
    const int states, most;
    const bool starts_apart, large;
    const Boundaries& starts;
    Lanes *rate, *h;       // [block][state]: A log2(e), the state
    Lanes *y, *d, *spare;  // [step]; y takes the place of u, and z that of d: the nearest cache is small
    Input<per_lane> B, C;
    const lanes::Exp2 exp2{};

   public:
    Forward(const Problem& problem, const Cut& cut, const Part& of, const Boundaries& boundaries, Scratch& s)
        : p(problem), part(of), states(static_cast<int>(p.states)), most(window_length(p, STRETCH)),
          starts_apart(cut.segments > 1), large(p.rows * p.channels * p.length * p.out.size() >= LARGE),
          starts(boundaries), rate(s.take(cut.most_blocks() * states)), h(s.take(cut.most_blocks() * states)),
          y(s.take(most)), d(s.take(most)), spare(s.take(most)),
          B(p, cut, p.B, p.groups_B, part, most, s), C(p, cut, p.C, p.groups_C, part, most, s) {}

    void run() {
        for (int block = 0; block < part.blocks(); ++block) {
            load_rates(p, part, block, rate + block * states);
            if (starts_apart) std::copy_n(starts.state(part, block), states, h + block * states);
            else tiles::load_or_zero(h + block * states, p.initial, part.window(block, 0, states));
        }
        for (int64_t first = part.begin; first < part.end; first += STRETCH) {
            const int steps = static_cast<int>(std::min<int64_t>(STRETCH, part.end - first));
            B.read(first, steps);
            C.read(first, steps);
            for (int block = 0; block < part.blocks(); ++block) read_stretch(block, first, steps);
        }
        for (int block = 0; part.end == p.length && block < part.blocks(); ++block)
            tiles::store(h + block * states, p.last, part.window(block, 0, states));
        lanes::finish_streams();
    }

   private:
    // Whether out is written past the caches.
    bool streams(const tiles::Window& w) const {
        return large && tiles::in_rows(w, p.z, p.out) > 0 && tiles::in_lines(w, p.out);
    }

    void read_stretch(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps), channels = part.window(block, 0, 1);
        Lanes bias, skip;
        tiles::load_or_zero(&bias, p.bias, channels);
        tiles::load_or_zero(&skip, p.D, channels);
        tiles::load(y, p.u, window);
        const Lanes most = step_sizes(p, exp2, Columns::read(p.delta, window, d), bias, steps, d, spare, nullptr);
        const auto next = part.next(block, first, first + STRETCH, STRETCH);
        const tiles::Ahead ahead[] = {
            {p.u, next}, {p.delta, next}, {p.z, next}, {streams(next) ? TypedView{} : p.out, next}};
        const bool near = all_near(most, rate + block * states, states);
        const int stride = p.kept ? WINDOW : STRETCH;
        for (int from = 0; from < steps; from += stride) {
            const int to = std::min(from + stride, steps);
            if (p.kept) keep(block, first + from);
            if (near) run_steps<true>(block, from, to, skip, ahead);
            else run_steps<false>(block, from, to, skip, ahead);
        }
        finish(window);
    }

    // The state before a step; room for the next one is fetched meanwhile.
    void keep(int block, int64_t step) {
        if (step > 0) tiles::store(h + block * states, p.kept, part.kept(p, part.window(block, step, WINDOW)));
        if (step + WINDOW >= p.length) return;
        const tiles::Ahead next(p.kept, part.kept(p, part.window(block, step + WINDOW, WINDOW)));
        for (int i = 0; i < next.turns_of_all(); ++i) next.fetch(i);
    }

    // out from y.
    void finish(const tiles::Window& w) {
        if (!p.z) return tiles::store(y, p.out, w);
        const int steps = tiles::in_rows(w, p.z, p.out);
        if (steps > 0)
            p.z.with_type([&](const auto& z) {
                if (streams(w)) store_gated(z, p.out.of<lanes::Streamed>(), w, steps);
                else store_gated(z, p.out.of<std::decay_t<decltype(*z.data)>>(), w, steps);
            });
        if (steps == w.steps) return;
        const auto rest = w.from(steps);
        gate(exp2, rest.steps, y + steps, Columns::read(p.z, rest, d), Columns::open(p.out, rest, y + steps));
        Columns::close(p.out, rest, y + steps);
    }

    template <class Element, class Result>
    __attribute__((noinline)) void store_gated(const tiles::ViewOf<Element>& z, const tiles::ViewOf<Result>& out,
                                               const tiles::Window& w, int steps) {
        const lanes::Exp2 power = exp2;
        const auto open = [&](Lanes* rows, int channel, int step) __attribute__((always_inline)) {
            Lanes gates[tiles::BLOCKS];
            tiles::load_rows(gates, z, w, channel, step);
            lanes::gate<tiles::BLOCKS>(power, rows, gates);
        };
        tiles::store_squares(y, out, w, steps, open);
    }

    template <bool near>
    void run_steps(int block, int from, int to, Lanes skip, const tiles::Ahead* ahead) {
        if (near && states == 16) run_sixteen_states(block, from, to, skip, ahead);
        else run_states<near, 0>(block, from, to, skip, ahead);
    }

    __attribute__((noinline)) void run_sixteen_states(int block, int from, int to, Lanes skip,
                                                      const tiles::Ahead* ahead) {
#if defined(__AVX512F__)
        const lanes::Exp2 power = exp2;
        const Lanes* a = rate + block * 16;
        Lanes *state = h + block * 16, own[16];
        const auto B_ = B.template at<16>(block, 0), C_ = C.template at<16>(block, 0);
        LANES_UNROLL
        for (int n = 0; n < 16; ++n) own[n] = state[n];
        for (int t = from; t < to; ++t) {
            const Lanes u = y[t];
            ahead[t % 4].fetch(t / 4);
            y[t] = SixteenStates(power, d[t], u, skip * u, a, B_[t], C_[t], own).take();
        }
        LANES_UNROLL
        for (int n = 0; n < 16; ++n) state[n] = own[n];
#else
        run_states<true, 16>(block, from, to, skip, ahead);
#endif
    }

    // fixed: the number of states where it is known to the compiler, else 0.
    template <bool near, int fixed>
    __attribute__((noinline)) void run_states(int block, int from, int to, Lanes skip, const tiles::Ahead* ahead) {
        constexpr int few = fixed ? 4 : 1;
        const int count = fixed ? fixed : states;
        const lanes::Exp2 power = exp2;
        const Lanes* a = rate + block * count;
        Lanes *state = h + block * count, own[fixed ? fixed : 1];
        if (fixed) state = std::copy_n(state, fixed, own) - fixed;
        const auto B_ = B.template at<fixed>(block, 0), C_ = C.template at<fixed>(block, 0);
        for (int t = from; t < to; ++t) {
            const Lanes dt = d[t], u = y[t], x = dt * u;
            const auto B_t = B_[t], C_t = C_[t];
            Lanes sum = skip * u;
            ahead[t % 4].fetch(t / 4);
            LANES_UNROLL
            for (int n = 0; n < count; n += few) {
                Lanes first[few], second[few];
                decays<near, few>(power, dt, a + n, first, second);
                LANES_UNROLL
                for (int i = 0; i < few; ++i) {
                    const Lanes new_state = first[i] * (second[i] * state[n + i]) + x * B_t[n + i];
                    sum += new_state * C_t[n + i];
                    state[n + i] = new_state;
                }
            }
            y[t] = sum;
        }
        if (fixed) std::copy_n(own, fixed, h + block * count);
    }
};

}  // namespace scan
