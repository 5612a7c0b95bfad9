// Every gradient, from the last window to the first. Within a window the states are computed again from the one kept
// before it; then G, the gradient of the state, runs backwards:
//
//     G_t = C_t g_t + exp(d_{t+1} A) G_{t+1}          G beyond the last step = the gradient of h_L, g = that of y
//
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
    Lanes *u, *d, *slope, *z, *g, *y, *du, *ddelta;  // [step]
    Lanes *decay, *kept;                             // [step][state]: exp(d A), and that times h_{t-1}
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
          g(s.take(most)), y(s.take(most)), du(s.take(most)), ddelta(s.take(most)), decay(s.take(most * states)),
          kept(s.take(most * states)), h(s.take(states)), B(p, cut, p.B, p.groups_B, part, s),
          C(p, cut, p.C, p.groups_C, part, s), dB(p, p.groups_B > 0, s), dC(p, p.groups_C > 0, s),
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
        dB.clear(steps);
        dC.clear(steps);
        for (int block = 0; block < part.blocks(); ++block) run_block(block, first, steps);
        dB.write(rooms.over_channels(rooms.dB, part, first), steps);
        dC.write(rooms.over_channels(rooms.dC, part, first), steps);
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
        const auto next = part.next(block, first, first - WINDOW);
        const Ahead ahead = {{p.u, next}, {p.delta, next}, {p.dout, next}, {p.z, next}};
        if (states == 16) run_states<16>(block, window, skip, ahead);
        else run_states<0>(block, window, skip, ahead);
        tiles::store(du, p.du, window);
        tiles::store(ddelta, p.ddelta, window);
    }

    // fixed: the number of states where it is known to the compiler, else 0.
    template <int fixed>
    void run_states(int block, const tiles::Window& window, Lanes skip, const Ahead& ahead) {
        const int steps = window.steps;
        for (int t = 0; t < steps; ++t) y[t] = d[t] * lanes::LOG2E;
        if (all_near(y, steps, A + block * states, states)) replay<true, fixed>(block, steps, skip, ahead);
        else replay<false, fixed>(block, steps, skip, ahead);
        if (p.z) open_gate(window, steps);
        for (int t = steps - 1; t >= 0; --t) {
            reverse_step<fixed>(block, t, skip);
            if (t % sums::FOLD == 0) over_time.fold(block);
        }
    }

    template <bool near, int fixed>
    __attribute__((noinline)) void replay(int block, int steps, Lanes skip, const Ahead& ahead) {
        const int count = fixed ? fixed : states;
        const lanes::Exp2 power = exp2;
        const Lanes* a = A + block * count;
        for (int t = 0; t < steps; ++t) {
            const Lanes rate = d[t] * lanes::LOG2E, x = d[t] * u[t];
            Lanes *decay_n = decay + t * count, *kept_n = kept + t * count, sum = skip * u[t];
            fetch(ahead, t);
            LANES_UNROLL
            for (int n = 0; n < count; ++n) {
                decay_n[n] = near ? power(rate, a[n]) : lanes::exp2_product(rate, a[n]);
                kept_n[n] = decay_n[n] * h[n];
                h[n] = kept_n[n] + x * B.at(block, t, n);
                sum += h[n] * C.at(block, t, n);
            }
            y[t] = sum;
        }
    }

    // From the gradient of out to that of y, and that of z.
    void open_gate(const tiles::Window& window, int steps) {
        tiles::load(z, p.z, window);
        for (int t = 0; t < steps; ++t) {
            const Lanes s = lanes::sigmoid(exp2, z[t]), dout = g[t];
            g[t] = dout * z[t] * s;
            z[t] = dout * y[t] * s * (1.0f + z[t] * (1.0f - s));
        }
        tiles::store(z, p.dz, window);
    }

    template <int fixed>
    __attribute__((noinline)) void reverse_step(int block, int t, Lanes skip) {
        const int count = fixed ? fixed : states;
        const Lanes dt = d[t], gt = g[t], x = dt * u[t];
        const Lanes *A_n = A + block * count, *decay_n = decay + t * count, *kept_n = kept + t * count;
        Lanes *G_n = G + block * count, *totals = &over_time[0], *dA_n = totals + rooms.terms.A;
        Lanes *dB_n = p.groups_B ? dB.terms(t) : totals + rooms.terms.B, *dC_n = p.groups_C ? dC.terms(t) : totals + rooms.terms.C;
        Lanes by_x{}, by_decay{};
        LANES_UNROLL
        for (int n = 0; n < count; ++n) {
            const Lanes b = Lanes{} + B.at(block, t, n), kept = kept_n[n];
            const Lanes gradient = G_n[n] + gt * C.at(block, t, n), through = gradient * kept;
            by_x += gradient * b;
            by_decay += through * A_n[n];
            dA_n[n] += through * dt;
            dB_n[n] += gradient * x;
            dC_n[n] += gt * (kept + x * b);
            G_n[n] = decay_n[n] * gradient;
        }
        du[t] = skip * gt + dt * by_x;
        ddelta[t] = (u[t] * by_x + by_decay) * slope[t];
        totals[rooms.terms.D] += gt * u[t];
        totals[rooms.terms.bias] += ddelta[t];
    }
};

}  // namespace scan
