// Every gradient, from the last window to the first. Within a window the states are computed again from the one kept
// before it; then G, the gradient of the state, runs backwards:
//
//     G_t = C_t g_t + exp(d_{t+1} A) G_{t+1}          G beyond the last step = the gradient of h_L, g = that of y
//
// A few states at a time, so that what is kept of the one pass for the other stays in the nearest cache.
// Sums over channels (dB, dC of inputs that vary) and over time (all others) are left per part in Rooms.
#pragma once

#include "cpu_segments.h"
#include "cpu_sums.h"

namespace scan {

template <bool per_lane>
class Backward {
    const Problem& p;
    const Part part;
    const int states, most;
    const bool starts_apart;
    const Boundaries& starts;
    const Rooms& rooms;
    Lanes *A, *G;                                    // [block][state]
    Lanes *u, *d, *slope, *z, *g, *y;                // [step]
    Lanes *by_x, *by_decay;                          // [step]: the gradients of d u and of d A, of the latter times A
    Lanes *decay, *kept;                             // [step][state of a group]: exp(d A), and that times h_{t-1}
    Lanes* h;                                        // [state]
    Input<per_lane> B, C;
    ChannelSums dB, dC;
    sums::TimeSums over_time;
    const lanes::Exp2 exp2{};

   public:
    Backward(const Problem& problem, const Cut& cut, const Part& of, const Boundaries& boundaries, const Rooms& r,
             Scratch& s)
        : p(problem), part(of), states(static_cast<int>(p.states)), most(window_length(p)),
          starts_apart(cut.segments > 1), starts(boundaries), rooms(r), A(s.take(cut.most_blocks() * states)),
          G(s.take(cut.most_blocks() * states)), u(s.take(most)), d(s.take(most)), slope(s.take(most)), z(s.take(most)),
          g(s.take(most)), y(s.take(most)), by_x(s.take(most)), by_decay(s.take(most)), decay(s.take(most * GROUP)),
          kept(s.take(most * GROUP)), h(s.take(states)), B(p, cut, p.B, p.groups_B, part, most, s),
          C(p, cut, p.C, p.groups_C, part, most, s), dB(p, p.groups_B > 0, s), dC(p, p.groups_C > 0, s),
          over_time(cut.most_blocks(), rooms.terms.count, s) {}

    void run() {
        for (int block = 0; block < part.blocks(); ++block) {
            tiles::load(A + block * states, p.A, part.window(block, 0, states));
            if (starts_apart) std::copy_n(starts.state(part, block), states, G + block * states);
            else tiles::load_or_zero(G + block * states, p.dlast, part.window(block, 0, states));
        }
        for (int64_t first = part.begin + (part.end - 1 - part.begin) / WINDOW * WINDOW; first >= part.begin; first -= WINDOW)
            run_window(first, static_cast<int>(std::min<int64_t>(WINDOW, part.end - first)));
        for (int block = 0; p.dinitial && part.begin == 0 && block < part.blocks(); ++block)
            tiles::store(G + block * states, p.dinitial, part.window(block, 0, states));
        std::copy_n(over_time.total(0), part.blocks() * rooms.terms.count, rooms.over_time(part));
    }

   private:
    void run_window(int64_t first, int steps) {
        B.read(first, steps);
        C.read(first, steps);
        dB.clear();
        dC.clear();
        for (int block = 0; block < part.blocks(); ++block) run_block(block, first, steps);
        dB.write(rooms.over_channels(rooms.dB, part, first), p.length, steps);
        dC.write(rooms.over_channels(rooms.dC, part, first), p.length, steps);
    }

    void run_block(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps), channels = part.window(block, 0, 1);
        Lanes bias, skip;
        tiles::load_or_zero(&bias, p.bias, channels);
        tiles::load_or_zero(&skip, p.D, channels);
        tiles::load(u, p.u, window);
        tiles::load(d, p.delta, window);
        tiles::load_or_zero(g, p.dout, window);
        step_sizes(p, exp2, bias, steps, d, y, slope);
        if (first > 0) tiles::load(h, p.kept, part.kept(p, block, first));
        else tiles::load_or_zero(h, p.initial, part.window(block, 0, states));
        const auto next = part.next(block, first, first - WINDOW, WINDOW);
        const tiles::Ahead ahead[] = {{p.u, next},  {p.delta, next},  {p.dout, next}, {p.z, next},  // two per group
                                      {p.du, next}, {p.ddelta, next}, {p.dz, next},   {{}, next}};
        for (int t = 0; t < steps; ++t) by_x[t] = d[t] * lanes::LOG2E;
        const bool near = all_near(by_x, steps, A + block * states, states);
        if (p.z) open_gate(window, steps);
        for (int t = 0; t < steps; ++t) {
            y[t] = skip * u[t];
            by_x[t] = by_decay[t] = Lanes{};
        }
        for (int state = 0; state < states; state += GROUP) {
            if (states - state < GROUP) run_group<0>(near, block, state, steps, ahead);
            else run_group<GROUP>(near, block, state, steps, ahead);
        }
        finish(block, steps, skip);
        tiles::store(y, p.du, window);
        tiles::store(by_decay, p.ddelta, window);
        if (p.z) tiles::store(z, p.dz, window);
    }

    // From the gradient of out to that of y; and what that of z is, but for y.
    void open_gate(const tiles::Window& window, int steps) {
        tiles::load(z, p.z, window);
        for (int t = 0; t < steps; ++t) {
            const Lanes s = lanes::sigmoid(exp2, z[t]), by_gate = g[t] * s;
            g[t] = by_gate * z[t];
            z[t] = by_gate * (1.0f + z[t] * (1.0f - s));
        }
    }

    // fixed: how many states the group has where that is known to the compiler, else 0.
    template <int fixed>
    void run_group(bool near, int block, int state, int steps, const tiles::Ahead* ahead) {
        if (near) replay<true, fixed>(block, state, steps, ahead);
        else replay<false, fixed>(block, state, steps, ahead);
        const int count = fixed ? fixed : states - state;
        for (int from = (steps - 1) / sums::FOLD * sums::FOLD; from >= 0; from -= sums::FOLD) {
            reverse<fixed>(block, state, from, std::min(from + sums::FOLD, steps));
            dB.add(state, count, from);
            dC.add(state, count, from);
            over_time.fold(block, rooms.terms.A + state, count);
            if (!p.groups_B) over_time.fold(block, rooms.terms.B + state, count);
            if (!p.groups_C) over_time.fold(block, rooms.terms.C + state, count);
        }
    }

    template <bool near, int fixed>
    __attribute__((noinline)) void replay(int block, int state, int steps, const tiles::Ahead* ahead) {
        const int count = fixed ? fixed : states - state;
        const lanes::Exp2 power = exp2;
        const Lanes* a = A + block * states + state;
        Lanes now[GROUP];
        std::copy_n(h + state, count, now);
        for (int t = 0; t < steps; ++t) {
            const Lanes rate = d[t] * lanes::LOG2E, x = d[t] * u[t];
            const auto B_t = B.at(block, t) + state, C_t = C.at(block, t) + state;
            Lanes *decay_n = decay + t * GROUP, *kept_n = kept + t * GROUP, sum = y[t];
            if (t % 2 == 0) ahead[state / GROUP % 4 * 2 + t / 2 % 2].fetch(t / 4);
            LANES_UNROLL
            for (int n = 0; n < count; ++n) {
                if (near) power.powers<1>(rate, a + n, decay_n + n);
                else decay_n[n] = lanes::exp2_product(rate, a[n]);
                kept_n[n] = decay_n[n] * now[n];
                now[n] = kept_n[n] + x * B_t[n];
                sum += now[n] * C_t[n];
            }
            y[t] = sum;
        }
    }

    // The steps [from, to), backwards.
    template <int fixed>
    __attribute__((noinline)) void reverse(int block, int state, int from, int to) {
        const int count = fixed ? fixed : states - state;
        const Lanes* A_n = A + block * states + state;
        Lanes *total = &over_time[0], *total_B = total + rooms.terms.B + state, *total_C = total + rooms.terms.C + state;
        Lanes *G_n = G + block * states + state, gradient_of_h[GROUP], dA[GROUP];
        std::copy_n(G_n, count, gradient_of_h);
        std::fill_n(dA, count, Lanes{});
        for (int t = to - 1; t >= from; --t) {
            const Lanes dt = d[t], gt = g[t], x = dt * u[t];
            const auto B_t = B.at(block, t) + state, C_t = C.at(block, t) + state;
            const Lanes *decay_n = decay + t * GROUP, *kept_n = kept + t * GROUP;
            Lanes of_x = by_x[t], of_decay = by_decay[t];
            LANES_UNROLL
            for (int n = 0; n < count; ++n) {
                const auto b = B_t[n];
                const Lanes kept = kept_n[n];
                const Lanes gradient = gradient_of_h[n] + gt * C_t[n], through = gradient * kept;
                of_x += gradient * b;
                of_decay += through * A_n[n];
                dA[n] += through * dt;
                if (!per_lane || p.groups_B) dB.term(n, t - from) = gradient * x;
                else total_B[n] += gradient * x;
                if (!per_lane || p.groups_C) dC.term(n, t - from) = gt * (kept + x * b);
                else total_C[n] += gt * (kept + x * b);
                gradient_of_h[n] = decay_n[n] * gradient;
            }
            by_x[t] = of_x;
            by_decay[t] = of_decay;
        }
        std::copy_n(gradient_of_h, count, G_n);
        std::copy_n(dA, count, total + rooms.terms.A + state);
    }

    // What is known after the last group: the gradients of u, delta, z, D and the bias, over the arrays that led to them.
    void finish(int block, int steps, Lanes skip) {
        Lanes *total_D = &over_time[rooms.terms.D], *total_bias = &over_time[rooms.terms.bias];
        for (int t = 0; t < steps; ++t) {
            z[t] *= y[t];
            y[t] = skip * g[t] + d[t] * by_x[t];
            by_decay[t] = (u[t] * by_x[t] + by_decay[t]) * slope[t];
            *total_D += g[t] * u[t];
            *total_bias += by_decay[t];
            if (t % sums::FOLD == sums::FOLD - 1 || t == steps - 1) {
                over_time.fold(block, rooms.terms.D, 1);
                over_time.fold(block, rooms.terms.bias, 1);
            }
        }
    }
};

}  // namespace scan
