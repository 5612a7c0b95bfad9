// The states at which segments begin, so that all segments can be read at the same time.
//
// A first pass reads every segment but the last from a zero state, and adds up its step sizes: what a start state adds
// to the end state is exp(A sum of d) times it. From these the start states follow, one after the other. The gradient
// of the state runs through the segments backwards in the same way: `reverse`.
#pragma once

#include "../sums.h"
#include "cpu_problem.h"

namespace scan {

class Boundaries {
    const int states, blocks;
    const Cut& cut;
    Lanes *states_, *elapsed_;  // [segment][task][block][state]; without [state]

    int64_t index(const Part& part) const { return (part.segment * cut.tasks + part.task) * blocks; }

   public:
    Boundaries(const Problem& p, const Cut& c, Scratch& scratch)
        : states(static_cast<int>(p.states)), blocks(c.most_blocks()), cut(c) {
        const int64_t count = cut.segments > 1 ? cut.segments * cut.tasks * blocks : 0;
        states_ = scratch.take(count * states);
        elapsed_ = scratch.take(count);
    }

    Lanes* state(const Part& part, int block) const { return states_ + (index(part) + block) * states; }
    Lanes& elapsed(const Part& part, int block) const { return elapsed_[index(part) + block]; }
};

// What a segment ends with if it begins with zeros:
//     h_t = exp(d_t A) h_{t-1} + d_t u_t B_t        or, from the last step to the first,
//     G_t = exp(d_t A) (G_{t+1} + g_t C_t)          g = the gradient of y
template <bool per_lane, bool reverse>
class Ends {
    const Problem& p;
    const Part part;
    const int states;
    const Boundaries& ends;
    Lanes *rate, *d, *x, *spare;  // [state], [step]...
    Input<per_lane> input;
    sums::TimeSums elapsed;
    const lanes::Exp2 exp2{};

   public:
    Ends(const Problem& problem, const Cut& cut, const Part& of, const Boundaries& boundaries, Scratch& s)
        : p(problem), part(of), states(static_cast<int>(p.states)), ends(boundaries), rate(s.take(states)),
          d(s.take(WINDOW)), x(s.take(WINDOW)), spare(s.take(WINDOW)),
          input(p, cut, reverse ? p.C : p.B, reverse ? p.groups_C : p.groups_B, part, WINDOW, s),
          elapsed(cut.most_blocks(), 1, s) {}

    void run() {
        for (int block = 0; block < part.blocks(); ++block) std::fill_n(ends.state(part, block), states, Lanes{});
        const int64_t windows = (part.end - part.begin + WINDOW - 1) / WINDOW;
        for (int64_t i = 0; i < windows; ++i) {
            const int64_t first = part.begin + (reverse ? windows - 1 - i : i) * WINDOW;
            const int steps = static_cast<int>(std::min<int64_t>(WINDOW, part.end - first));
            input.read(first, steps);
            for (int block = 0; block < part.blocks(); ++block) read_window(block, first, steps);
        }
        for (int block = 0; block < part.blocks(); ++block) ends.elapsed(part, block) = *elapsed.total(block);
    }

   private:
    void read_window(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps);
        Lanes bias;
        tiles::load_or_zero(&bias, p.bias, part.window(block, 0, 1));
        tiles::load_or_zero(x, reverse ? p.dout : p.u, window);
        if (reverse && p.z) gate(exp2, steps, x, Columns::read(p.z, window, d), Columns::of(x));
        const Lanes most = step_sizes(p, exp2, Columns::read(p.delta, window, d), bias, steps, d, spare, nullptr);
        for (int t = 0; t < steps; ++t) elapsed[0] += d[t];
        elapsed.fold(block);
        load_rates(p, part, block, rate);
        if (all_near(most, rate, states)) run_steps<true>(block, steps);
        else run_steps<false>(block, steps);
    }

    template <bool near>
    __attribute__((noinline)) void run_steps(int block, int steps) {
        const lanes::Exp2 power = exp2;
        Lanes* state = ends.state(part, block);
        const auto given = input.at(block, 0);
        for (int i = 0; i < steps; ++i) {
            const int t = reverse ? steps - 1 - i : i;
            const Lanes dt = d[t], in = reverse ? x[t] : dt * x[t];
            for (int n = 0; n < states; ++n) {
                const Lanes decay = near ? power(dt, rate[n]) : lanes::exp2_product(dt, rate[n]);
                const Lanes added = in * given[t][n];
                state[n] = reverse ? decay * (state[n] + added) : decay * state[n] + added;
            }
        }
    }
};

// From the ends of all segments to what each begins with. `begin`: what the first begins with, if anything.
inline void link(const Problem& p, const Cut& cut, const TypedView& begin, bool reverse, const Boundaries& boundaries) {
    for_each(p, cut.tasks, [&](int64_t task, Scratch& scratch) {
        Lanes *rate = scratch.take(p.states), *now = scratch.take(p.states);
        for (int block = 0; block < Part(p, cut, task, 0).blocks(); ++block) {
            load_rates(p, Part(p, cut, task, 0), block, rate);
            tiles::load_or_zero(now, begin, Part(p, cut, task, 0).window(block, 0, p.states));
            for (int64_t i = 0; i < cut.segments; ++i) {
                const Part part(p, cut, task, reverse ? cut.segments - 1 - i : i);
                Lanes* state = boundaries.state(part, block);
                std::swap_ranges(now, now + p.states, state);
                if (i == cut.segments - 1) break;  // nothing begins with its end
                const Lanes elapsed = boundaries.elapsed(part, block);
                for (int n = 0; n < p.states; ++n) {
                    const Lanes kept = lanes::exp2_product(elapsed, rate[n]) * state[n];
                    now[n] += state[n] == 0.0f ? Lanes{} : kept;  // also where the factor is infinite
                }
            }
        }
    });
}

// What every segment begins with; nothing to do for one segment.
template <bool per_lane, bool reverse>
void find_boundaries(const Problem& p, const Cut& cut, const TypedView& begin, const Boundaries& boundaries) {
    if (cut.segments == 1) return;
    for_each_part(p, cut, reverse ? 1 : 0, cut.segments - 1, [&](const Part& part, Scratch& scratch) {
        Ends<per_lane, reverse>(p, cut, part, boundaries, scratch).run();
    });
    link(p, cut, begin, reverse, boundaries);
}

}  // namespace scan
