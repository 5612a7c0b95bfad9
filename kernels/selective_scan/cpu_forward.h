// out and h_L from the arguments, and the states between windows where the backward pass will want them.
#pragma once

#include "cpu_segments.h"

namespace scan {

template <bool per_lane>
class Forward {
    const Problem& p;
    const Part part;
    const int states;
    const bool starts_apart;
    const Boundaries& starts;
    Lanes *rate, *h;       // [block][state]: A log2(e), the state
    Lanes *u, *d, *y, *z;  // [step]
    Input<per_lane> B, C;
    const lanes::Exp2 exp2{};

   public:
    Forward(const Problem& problem, const Cut& cut, const Part& of, const Boundaries& boundaries, Scratch& s)
        : p(problem), part(of), states(static_cast<int>(p.states)), starts_apart(cut.segments > 1), starts(boundaries),
          rate(s.take(cut.most_blocks() * states)), h(s.take(cut.most_blocks() * states)), u(s.take(window_length(p))),
          d(s.take(window_length(p))), y(s.take(window_length(p))), z(s.take(window_length(p))),
          B(p, cut, p.B, p.groups_B, part, s), C(p, cut, p.C, p.groups_C, part, s) {}

    void run() {
        for (int block = 0; block < part.blocks(); ++block) {
            load_rates(p, part, block, rate + block * states);
            if (starts_apart) std::copy_n(starts.state(part, block), states, h + block * states);
            else tiles::load_or_zero(h + block * states, p.initial, part.window(block, 0, states));
        }
        for (int64_t first = part.begin; first < part.end; first += WINDOW) {
            const int steps = static_cast<int>(std::min<int64_t>(WINDOW, part.end - first));
            B.read(first, steps);
            C.read(first, steps);
            for (int block = 0; block < part.blocks(); ++block) read_window(block, first, steps);
        }
        for (int block = 0; part.end == p.length && block < part.blocks(); ++block)
            tiles::store(h + block * states, p.last, part.window(block, 0, states));
    }

   private:
    void read_window(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps), channels = part.window(block, 0, 1);
        Lanes bias, skip;
        tiles::load_or_zero(&bias, p.bias, channels);
        tiles::load_or_zero(&skip, p.D, channels);
        if (p.kept && first > 0) tiles::store(h + block * states, p.kept, part.kept(p, block, first));
        tiles::load(u, p.u, window);
        tiles::load(d, p.delta, window);
        step_sizes(p, exp2, bias, steps, d, y, nullptr);
        const auto next = part.next(block, first, first + WINDOW);
        const tiles::Ahead ahead[] = {{p.u, next}, {p.delta, next}, {p.z, next}, {p.out, next}};
        if (all_near(d, steps, rate + block * states, states)) run_steps<true>(block, steps, skip, ahead);
        else run_steps<false>(block, steps, skip, ahead);
        if (p.z) {
            tiles::load(z, p.z, window);
            lanes::gate(exp2, steps, y, z, u);
        }
        tiles::store(y, p.out, window);
    }

    template <bool near>
    void run_steps(int block, int steps, Lanes skip, const tiles::Ahead* ahead) {
        if (states == 16) run_states<near, 16>(block, steps, skip, ahead);
        else run_states<near, 0>(block, steps, skip, ahead);
    }

    // fixed: the number of states where it is known to the compiler, else 0.
    template <bool near, int fixed>
    __attribute__((noinline)) void run_states(int block, int steps, Lanes skip, const tiles::Ahead* ahead) {
        const int count = fixed ? fixed : states;
        const lanes::Exp2 power = exp2;
        const Lanes* a = rate + block * count;
        Lanes *state = h + block * count, own[fixed ? fixed : 1];
        if (fixed) state = std::copy_n(state, fixed, own) - fixed;
        for (int t = 0; t < steps; ++t) {
            const Lanes dt = d[t], x = dt * u[t];
            const auto B_t = B.at(block, t), C_t = C.at(block, t);
            Lanes sum = skip * u[t];
            ahead[t % 4].fetch(t / 4);
            LANES_UNROLL
            for (int n = 0; n < count; ++n) {
                const Lanes decay = near ? power(dt, a[n]) : lanes::exp2_product(dt, a[n]);
                const Lanes new_state = decay * state[n] + x * B_t[n];
                sum += new_state * C_t[n];
                state[n] = new_state;
            }
            y[t] = sum;
        }
        if (fixed) std::copy_n(own, fixed, h + block * count);
    }
};

}  // namespace scan
