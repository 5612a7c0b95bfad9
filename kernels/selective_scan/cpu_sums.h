// Where the backward pass gathers the gradients of what steps or channels share, and how they are added up: in an order
// that is a matter of the shapes alone, not of which thread came first.
#pragma once

#include "../sums.h"
#include "cpu_problem.h"

namespace scan {

// The sums over time of one channel: their places in a row of terms.
struct Terms {
    int A, D, bias, B, C, count;  // A, B, C: one per state

    explicit Terms(const Problem& p) {
        const int states = static_cast<int>(p.states);
        A = 0;
        D = A + states;
        bias = D + 1;
        B = bias + 1;
        C = B + (p.groups_B ? 0 : states);
        count = C + (p.groups_C ? 0 : states);
    }
};

// For each state and step of a window, the sum over the part's channels. Lanes are added up when all blocks have been
// added, not block by block, but for the two halvings that `add` finds time for.
class ChannelSums {
    const int states, quads;
    Lanes* const terms;  // [state][quad of steps], halved twice
    const Lanes none{};

   public:
    // Windows are so long; of no length if nothing is to be added.
    ChannelSums(int states, int64_t window, Scratch& scratch)
        : states(states), quads(static_cast<int>(window / QUAD)), terms(scratch.take(states * quads)) {}

    // The terms of a block's lanes for the steps of a quad. The first block finds none there.
    LANES_INLINE void add(int block, int state, int quad, const Lanes of_steps[QUAD]) {
        Lanes& all = terms[state * quads + quad];
        all = *(block == 0 ? &none : &all) + lanes::halve_twice(of_steps);
    }

    // to: [state][step].
    void store(float* to) const {
        for (int i = 0; i < states * quads; i += W / QUAD, to += W) lanes::store(to, lanes::sum_quads(terms + i));
    }
};

// The sums of all parts.
class Rooms {
    const Problem& p;
    const Cut& cut;
    const int blocks;
    const int64_t windows;
    Lanes* times;  // [segment][task][block][term]

    float* take(bool wanted, Scratch& scratch) const {
        if (!wanted) return nullptr;
        return reinterpret_cast<float*>(scratch.take(cut.tasks * windows * p.states * (window / W)));
    }

   public:
    const int64_t window;  // steps that there is room for in each
    const Terms terms;
    float *const dB, *const dC;  // [task][window][state][step]; null if not wanted

    Rooms(const Problem& problem, const Cut& c, Scratch& scratch)
        : p(problem), cut(c), blocks(cut.most_blocks()), windows((p.length + WINDOW - 1) / WINDOW),
          times(scratch.take(cut.segments * cut.tasks * blocks * Terms(p).count)),
          window(std::min<int64_t>(WINDOW, (p.length + sums::FOLD - 1) / sums::FOLD * sums::FOLD)), terms(p),
          dB(take(p.groups_B > 0, scratch)), dC(take(p.groups_C > 0, scratch)) {}

    Lanes* over_time(const Part& part) const {
        return times + (part.segment * cut.tasks + part.task) * blocks * terms.count;
    }
    // Of the window that begins at the step.
    float* over_channels(float* room, int64_t task, int64_t step) const {
        return room ? room + (task * windows + step / WINDOW) * p.states * window : nullptr;
    }

    void add_up() const {
        for_each(p, cut.groups * cut.parts, [&](int64_t task, Scratch& s) { add_up_times(task, s); });
        add_up_channels(dB, p.dB, p.groups_B);
        add_up_channels(dC, p.dC, p.groups_C);
    }

   private:
    // Of a part's channels: over rows and segments.
    void add_up_times(int64_t task, Scratch& scratch) const {
        const Part part(p, cut, task, 0);
        Lanes* total = scratch.take(blocks * terms.count);
        std::fill_n(total, blocks * terms.count, Lanes{});
        for (int64_t row = 0; row < p.rows; ++row)
            for (int64_t segment = 0; segment < cut.segments; ++segment) {
                const Lanes* of_row = over_time(Part(p, cut, row * cut.groups * cut.parts + task, segment));
                for (int i = 0; i < part.blocks() * terms.count; ++i) total[i] += of_row[i];
            }
        for (int block = 0; block < part.blocks(); ++block, total += terms.count) {
            const auto of_states = part.window(block, 0, p.states), single = part.window(block, 0, 1);
            tiles::store(total + terms.A, p.dA, of_states);
            if (p.dD) tiles::store(total + terms.D, p.dD, single);
            if (p.dbias) tiles::store(total + terms.bias, p.dbias, single);
            if (!p.groups_B) tiles::store(total + terms.B, p.dB.of_channels(), of_states);
            if (!p.groups_C) tiles::store(total + terms.C, p.dC.of_channels(), of_states);
        }
    }

    // Of all windows of all groups of dB or dC: over the parts of a group.
    void add_up_channels(float* room, const Matrix& to, int64_t groups) const {
        const int64_t parts = groups ? cut.groups * cut.parts / groups : 0;
        for_each(p, p.rows * groups * windows, [&](int64_t task, Scratch& scratch) {
            const int64_t first = task % windows * WINDOW, row_and_group = task / windows;
            const int64_t last = std::min(first + WINDOW, p.length);
            TypedView view = to.of_group(row_and_group % groups);
            std::swap(view.channel, view.step);  // lanes are steps
            Lanes* total = scratch.take(window / W);
            for (int64_t state = 0; state < p.states; ++state) {
                std::fill_n(total, window / W, Lanes{});
                for (int64_t part = 0; part < parts; ++part) {
                    const float* terms = over_channels(room, row_and_group * parts + part, first) + state * window;
                    for (int i = 0; i < window / W; ++i) total[i] += lanes::load(terms + i * W);
                }
                for (int64_t step = first; step < last; step += W)
                    tiles::store(total + (step - first) / W, view, {row_and_group / groups, step, last, state, 1});
            }
        });
    }
};

}  // namespace scan
