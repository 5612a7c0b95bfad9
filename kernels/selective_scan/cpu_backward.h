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
    // Of a window: numbers of each step, then of each step and the states of a group.
    struct Steps {
        using Each = Lanes[WINDOW + parallel::STAGGER];
        Each u, d, slope, z, g, y;
        Each by_x, by_decay;  // the gradients of d u and of d A, of the latter times A
        Lanes h[1 + WINDOW + parallel::STAGGER / GROUP][GROUP];  // before the window, then after each step
        Lanes decay[WINDOW][GROUP];                              // exp(d A)
    };
    const Problem& p;
    const Part part;
    const int states;
    const bool starts_apart;
    const Boundaries& starts;
    const Rooms& rooms;
    Steps& at;
    Lanes *A, *G;   // [block][state]
    Lanes* before;  // [state]: the states before the window
    Input<per_lane, GROUP> B, C;
    ChannelSums dB, dC;
    sums::TimeSums over_time;
    const lanes::Exp2 exp2{};

   public:
    Backward(const Problem& problem, const Cut& cut, const Part& of, const Boundaries& boundaries, const Rooms& r,
             Scratch& s)
        : p(problem), part(of), states(static_cast<int>(p.states)), starts_apart(cut.segments > 1), starts(boundaries),
          rooms(r), at(s.take<Steps>()), A(s.take(cut.most_blocks() * states)), G(s.take(cut.most_blocks() * states)),
          before(s.take(states)), B(p, cut, p.B, p.groups_B, part, window_length(p), s),
          C(p, cut, p.C, p.groups_C, part, window_length(p), s),
          dB(states, p.groups_B ? rooms.window : 0, s), dC(states, p.groups_C ? rooms.window : 0, s),
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
        for (int block = 0; block < part.blocks(); ++block) run_block(block, first, steps);
        dB.store(rooms.over_channels(rooms.dB, part.task, first));
        dC.store(rooms.over_channels(rooms.dC, part.task, first));
    }

    void run_block(int block, int64_t first, int steps) {
        const auto window = part.window(block, first, steps), channels = part.window(block, 0, 1);
        const int filled = in_quads(steps);
        Lanes bias, skip;
        tiles::load_or_zero(&bias, p.bias, channels);
        tiles::load_or_zero(&skip, p.D, channels);
        tiles::load(at.u, p.u, window);
        if (p.z) open_gate(window);
        else tiles::load_or_zero(at.g, p.dout, window);
        const Lanes most = step_sizes(p, exp2, Columns::read(p.delta, window, at.d), bias, steps, at.d, at.y, at.slope);
        if (first > 0) tiles::load(before, p.kept, part.kept(p, window));
        else tiles::load_or_zero(before, p.initial, part.window(block, 0, states));
        const auto next = part.next(block, first, first - WINDOW, WINDOW);
        const tiles::Ahead ahead[] = {// two per group
                                      {p.u, next},  {p.delta, next},  {p.dout, next}, {p.z, next},
                                      {p.du, next}, {p.ddelta, next}, {p.dz, next},   {p.kept, part.kept(p, next)}};
        const bool near = all_near(most * lanes::LOG2E, A + block * states, states);
        for (Lanes* array : {at.u, at.d, at.g}) std::fill(array + steps, array + filled, Lanes{});  // no-op steps
        for (int t = 0; t < filled; ++t) {
            at.y[t] = skip * at.u[t];
            at.by_x[t] = at.by_decay[t] = Lanes{};
        }
        for (int state = 0; state < states; state += GROUP) {
            if (states - state < GROUP) run_group<0>(near, block, state, filled, ahead);
            else run_group<GROUP>(near, block, state, filled, ahead);
        }
        if (p.z) store_dz(window);
        finish(block, window, skip);
    }

    // From the gradient of out that of y, in g; and in z, what the gradient of z is but for y.
    void open_gate(const tiles::Window& w) {
        const int steps = squares(w);
        if (steps > 0) p.z.with_type([&](const auto& z) { open_squares(z, w, steps); });
        if (steps == w.steps) return;
        const auto rest = w.from(steps);
        const Columns z = Columns::read(p.z, rest, at.z + steps);
        tiles::load_or_zero(at.g + steps, p.dout, rest);
        for (int t = steps; t < w.steps; ++t) {
            at.z[t] = z[t - steps];
            open(exp2, at.g[t], at.z[t]);
        }
    }

    void store_dz(const tiles::Window& w) {
        const int steps = squares(w);
        if (steps > 0) p.dz.with_type([&](const auto& dz) { close_squares(dz, w, steps); });
        if (steps == w.steps) return;
        const auto rest = w.from(steps);
        const Columns dz = Columns::open(p.dz, rest, at.z + steps);
        for (int t = steps; t < w.steps; ++t) dz.set(t - steps, at.z[t] * at.y[t]);
        Columns::close(p.dz, rest, at.z + steps);
    }

    // So many steps of a window can be opened, and closed again, while lanes are steps. Then z is [row of a square].
    int squares(const tiles::Window& w) const { return tiles::in_rows(w, p.z, p.dout, p.dz); }

    template <class Element>
    __attribute__((noinline)) void open_squares(const tiles::ViewOf<Element>& z, const tiles::Window& w, int steps) {
        const lanes::Exp2 power = exp2;
        const auto change = [&](Lanes* g, int channel, int step) __attribute__((always_inline)) {
            Lanes gates[tiles::BLOCKS];
            tiles::load_rows(gates, z, w, channel, step);
            LANES_UNROLL
            for (int k = 0; k < tiles::BLOCKS; ++k) {
                open(power, g[k], gates[k]);
                at.z[step + QUAD * k + channel] = gates[k];
            }
        };
        tiles::load_squares(at.g, p.dout.of<Element>(), w, steps, change);
    }

    template <class Element>
    __attribute__((noinline)) void close_squares(const tiles::ViewOf<Element>& dz, const tiles::Window& w, int steps) {
        const auto change = [&](Lanes* y, int channel, int step) __attribute__((always_inline)) {
            LANES_UNROLL
            for (int k = 0; k < tiles::BLOCKS; ++k) y[k] *= at.z[step + QUAD * k + channel];
        };
        tiles::store_squares(at.y, dz, w, steps, change);
    }

    static LANES_INLINE void open(const lanes::Exp2& exp2, Lanes& g, Lanes& z) {
        const Lanes s = lanes::sigmoid(exp2, z), by_gate = g * s;
        g = by_gate * z;
        z = by_gate * (1.0f + z * (1.0f - s));
    }

    // fixed: how many states the group has where that is known to the compiler, else 0. Whole quads of steps.
    template <int fixed>
    void run_group(bool near, int block, int state, int steps, const tiles::Ahead* ahead) {
        if (near) replay<true, fixed>(block, state, steps, ahead);
        else replay<false, fixed>(block, state, steps, ahead);
        reverse<fixed>(block, state, steps);
    }

    template <bool near, int fixed>
    __attribute__((noinline)) void replay(int block, int state, int steps, const tiles::Ahead* ahead) {
        constexpr int few = fixed ? fixed : 1;
        const int count = fixed ? fixed : states - state;
        const lanes::Exp2 power = exp2;
        const Lanes* a = A + block * states + state;
        const auto B_n = B.at(block, state), C_n = C.at(block, state);
        Lanes h[GROUP];
        std::copy_n(before + state, count, h);
        std::copy_n(h, count, at.h[0]);
        for (int t = 0; t < steps; ++t) {
            const Lanes rate = at.d[t] * lanes::LOG2E, x = at.d[t] * at.u[t];
            const auto B_t = B_n[t], C_t = C_n[t];
            Lanes sum = at.y[t];
            if (t % 2 == 0) ahead[state / GROUP % 4 * 2 + t / 2 % 2].fetch(t / 4);
            LANES_UNROLL
            for (int n = 0; n < count; n += few) {
                Lanes first[few], second[few];
                decays<near, few>(power, rate, a + n, first, second);
                LANES_UNROLL
                for (int i = 0; i < few; ++i) {
                    const Lanes decay = first[i] * second[i];
                    h[n + i] = decay * h[n + i] + x * B_t[n + i];
                    sum += h[n + i] * C_t[n + i];
                    at.decay[t][n + i] = decay;
                    at.h[t + 1][n + i] = h[n + i];
                }
            }
            at.y[t] = sum;
        }
    }

    // All steps, backwards.
    template <int fixed>
    __attribute__((noinline)) void reverse(int block, int state, int steps) {
        const int count = fixed ? fixed : states - state;
        Lanes G_n[GROUP], dA[GROUP]{};
        std::copy_n(G + block * states + state, count, G_n);
        for (int from = (steps - 1) / sums::FOLD * sums::FOLD; from >= 0; from -= sums::FOLD) {
            const int to = std::min(from + sums::FOLD, steps);
            for (int first = to - QUAD; first >= from; first -= QUAD)
                reverse_quad<fixed>(block, state, first, G_n, dA);
            if (!p.groups_B) over_time.fold(block, rooms.terms.B + state, count);
            if (!p.groups_C) over_time.fold(block, rooms.terms.C + state, count);
        }
        std::copy_n(G_n, count, G + block * states + state);
        std::copy_n(dA, count, &over_time[rooms.terms.A + state]);
        over_time.fold(block, rooms.terms.A + state, count);
    }

    // A quad of steps, backwards, from G_n and dA of what comes later. Its sums over channels are halved twice on the way:
    // multiplications are what takes time here, and the units for additions and shuffles are idle.
    template <int fixed>
    LANES_INLINE void reverse_quad(int block, int state, int first, Lanes* G_n, Lanes* dA) {
        const int count = fixed ? fixed : states - state;
        const Lanes* A_n = A + block * states + state;
        const auto B_n = B.at(block, state), C_n = C.at(block, state);
        Lanes g[QUAD], d[QUAD], x[QUAD], of_x[QUAD], of_decay[QUAD], terms[QUAD];
        LANES_UNROLL
        for (int i = 0; i < QUAD; ++i) {
            g[i] = at.g[first + i];
            d[i] = at.d[first + i];
            x[i] = d[i] * at.u[first + i];
            of_x[i] = at.by_x[first + i];
            of_decay[i] = at.by_decay[first + i];
        }
        LANES_UNROLL
        for (int n = 0; n < count; ++n) {
            LANES_UNROLL
            for (int i = 0; i < QUAD; ++i) terms[i] = g[i] * at.h[first + i + 1][n];
            if (!per_lane || p.groups_C) dC.add(block, state + n, first / QUAD, terms);
            else over_time[rooms.terms.C + state + n] += (terms[0] + terms[1]) + (terms[2] + terms[3]);
            Lanes later = G_n[n], sum = dA[n];
            const Lanes rate = A_n[n];
            LANES_UNROLL
            for (int i = QUAD - 1; i >= 0; --i) {
                const int t = first + i;
                const Lanes gradient = later + g[i] * C_n[t][n];
                of_x[i] += gradient * B_n[t][n];
                terms[i] = gradient * x[i];
                later = at.decay[t][n] * gradient;
                const Lanes through = later * at.h[t][n];
                of_decay[i] += through * rate;
                sum += through * d[i];
            }
            G_n[n] = later;
            dA[n] = sum;
            if (!per_lane || p.groups_B) dB.add(block, state + n, first / QUAD, terms);
            else over_time[rooms.terms.B + state + n] += (terms[0] + terms[1]) + (terms[2] + terms[3]);
        }
        LANES_UNROLL
        for (int i = 0; i < QUAD; ++i) {
            at.by_x[first + i] = of_x[i];
            at.by_decay[first + i] = of_decay[i];
        }
    }

    // What is known after the last group: the gradients of u, delta, D and the bias, over the arrays that led to them.
    void finish(int block, const tiles::Window& w, Lanes skip) {
        const Columns du = Columns::open(p.du, w, at.y), ddelta = Columns::open(p.ddelta, w, at.by_decay);
        for (int from = 0; from < w.steps; from += sums::FOLD) {
            Lanes of_D{}, of_bias{};  // sums in registers
            for (int t = from; t < std::min(from + sums::FOLD, w.steps); ++t) {
                const Lanes of_delta = (at.u[t] * at.by_x[t] + at.by_decay[t]) * at.slope[t];
                du.set(t, skip * at.g[t] + at.d[t] * at.by_x[t]);
                ddelta.set(t, of_delta);
                of_D += at.g[t] * at.u[t];
                of_bias += of_delta;
            }
            over_time[rooms.terms.D] = of_D;
            over_time[rooms.terms.bias] = of_bias;
            over_time.fold(block, rooms.terms.D, 1);
            over_time.fold(block, rooms.terms.bias, 1);
        }
        Columns::close(p.du, w, at.y);
        Columns::close(p.ddelta, w, at.by_decay);
    }
};

}  // namespace scan
