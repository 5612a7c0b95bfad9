// Every gradient, from the last window to the first. Within a window the states are computed again from the one kept
// before it; then G, the gradient of the state, runs backwards:
//
//     G_t = C_t g_t + exp(d_{t+1} A) G_{t+1}          G beyond the last step = the gradient of h_L, g = that of y
//
// Sums over channels (dB, dC) are kept per part, sums over time (dA, dD, dbias) per row; the caller adds them up in a
// fixed order, so that the result does not depend on the threads.
#pragma once

#include "cpu_sums.h"

namespace scan {

template <bool per_lane>
class Backward {
    const Problem& p;
    const Part part;
    const int states, most;
    Lanes *A, *G;                                    // [block][state]
    Lanes *u, *d, *slope, *z, *g, *y, *du, *ddelta;  // [step]
    Lanes *decay, *kept;                             // [step][state]: exp(d A), and that times h_{t-1}
    Lanes* h;                                        // [state]
    Input<per_lane> B, C;
    InputGradient dB, dC;
    TimeSums dA, dD, dbias;

   public:
    Backward(const Problem& problem, int64_t task, Scratch& s)
        : p(problem), part(p, task), states(static_cast<int>(p.states)), most(window_length(p)),
          A(s.take(most_blocks(p) * states)), G(s.take(most_blocks(p) * states)), u(s.take(most)), d(s.take(most)),
          slope(s.take(most)), z(s.take(most)), g(s.take(most)), y(s.take(most)), du(s.take(most)),
          ddelta(s.take(most)), decay(s.take(most * states)), kept(s.take(most * states)), h(s.take(states)),
          B(p, p.B, p.constant_B, part, s), C(p, p.C, p.constant_C, part, s), dB(p, p.dB, p.constant_B, s),
          dC(p, p.dC, p.constant_C, s), dA(most_blocks(p), states, s), dD(most_blocks(p), 1, s),
          dbias(most_blocks(p), 1, s) {}

    void run() {
        for (int block = 0; block < part.blocks(); ++block) {
            tiles::load(A + block * states, p.A, part.window(block, 0, states));
            tiles::load_or_zero(G + block * states, p.dlast, part.window(block, 0, states));
        }
        for (int64_t first = (p.length - 1) / WINDOW * WINDOW; first >= 0; first -= WINDOW)
            run_window(first, static_cast<int>(std::min<int64_t>(WINDOW, p.length - first)));
        for (int block = 0; p.dinitial && block < part.blocks(); ++block)
            tiles::store(G + block * states, p.dinitial, part.window(block, 0, states));
        write(dA, p.dA, part, states);
        write(dD, p.dD, part, 1);
        write(dbias, p.dbias, part, 1);
        dB.write_total(part);
        dC.write_total(part);
    }

   private:
    void run_window(int64_t first, int steps) {
        B.read(first, steps);
        C.read(first, steps);
        dB.clear(steps);
        dC.clear(steps);
        for (int block = 0; block < part.blocks(); ++block) run_block(block, first, steps);
        dB.write_window(p, part, first, steps);
        dC.write_window(p, part, first, steps);
    }

    void run_block(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps), channels = part.window(block, 0, 1);
        Lanes bias, skip;
        tiles::load_or_zero(&bias, p.bias, channels);
        tiles::load_or_zero(&skip, p.D, channels);
        tiles::load(u, p.u, window);
        tiles::load(d, p.delta, window);
        tiles::load(g, p.dout, window);
        step_sizes(p, bias, steps, d, slope);
        if (first > 0) tiles::load(h, p.kept, part.kept(p, block, first));
        else tiles::load_or_zero(h, p.initial, part.window(block, 0, states));
        for (int t = 0; t < steps; ++t) y[t] = skip * u[t] + replay_step(block, t);
        if (p.z) open_gate(window, steps);
        for (int t = steps - 1; t >= 0; --t) {
            reverse_step(block, t, skip);
            if (t % sums::FOLD == 0) fold(block);
        }
        tiles::store(du, p.du, window);
        tiles::store(ddelta, p.ddelta, window);
    }

    Lanes replay_step(int block, int t) {
        const Lanes rate = d[t] * lanes::LOG2E, x = d[t] * u[t];
        const Lanes* A_n = A + block * states;
        Lanes *decay_n = decay + t * states, *kept_n = kept + t * states, sum{};
        for (int n = 0; n < states; ++n) {
            const Lanes a = lanes::exp2_product(rate, A_n[n]), before = a * h[n];
            const Lanes state = before + x * B.at(block, t, n);
            sum += state * C.at(block, t, n);
            decay_n[n] = a;
            kept_n[n] = before;
            h[n] = state;
        }
        return sum;
    }

    // From the gradient of out to that of y, and that of z.
    void open_gate(const tiles::Window& window, int steps) {
        tiles::load(z, p.z, window);
        for (int t = 0; t < steps; ++t) {
            const Lanes s = lanes::sigmoid(z[t]), dout = g[t];
            g[t] = dout * z[t] * s;
            z[t] = dout * y[t] * s * (1.0f + z[t] * (1.0f - s));
        }
        tiles::store(z, p.dz, window);
    }

    void reverse_step(int block, int t, Lanes skip) {
        const Lanes dt = d[t], gt = g[t], x = dt * u[t];
        const Lanes *A_n = A + block * states, *decay_n = decay + t * states, *kept_n = kept + t * states;
        Lanes *G_n = G + block * states, *dA_n = &dA[0], *dB_n = dB.terms(t), *dC_n = dC.terms(t);
        Lanes by_x{}, by_decay{};
        for (int n = 0; n < states; ++n) {
            const Lanes b = Lanes{} + B.at(block, t, n);
            const Lanes gradient = G_n[n] + gt * C.at(block, t, n), through = gradient * kept_n[n];
            by_x += gradient * b;
            by_decay += through * A_n[n];
            dA_n[n] += through * dt;
            dB_n[n] += gradient * x;
            dC_n[n] += gt * (kept_n[n] + x * b);
            G_n[n] = decay_n[n] * gradient;
        }
        du[t] = skip * gt + dt * by_x;
        ddelta[t] = (u[t] * by_x + by_decay) * slope[t];
        dD[0] += gt * u[t];
        dbias[0] += ddelta[t];
    }

    void fold(int block) {
        dA.fold(block);
        dD.fold(block);
        dbias.fold(block);
        dB.fold(block);
        dC.fold(block);
    }
};

}  // namespace scan
