// What a scan on the CPU is given, and how it is cut: a part is up to 128 channels of one row, read window by window.
//
// Lanes are channels, so that the recurrence over time needs no exchange between lanes. The channels of a part share
// the inputs B and C, which are laid out once per window for all of them. Where there are fewer parts than threads,
// time is cut into segments too.
#pragma once

#include <numeric>
#include <type_traits>

#include "../functions.h"
#include "../parallel.h"
#include "../tiles.h"

namespace scan {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;
using tiles::Columns;
using tiles::TypedView;

constexpr int WINDOW = SCAN_WINDOW;  // steps whose states the backward pass holds at a time
constexpr int GROUP = 4;             // states that the backward pass holds in registers at a time
constexpr int QUAD = lanes::QUAD;    // steps that it takes at a time
static_assert(WINDOW % QUAD == 0);

// So many steps, filled up to quads.
constexpr int in_quads(int steps) { return (steps + QUAD - 1) / QUAD * QUAD; }

// B or C. Variable: (rows, groups, states, steps). Constant: one "group" per channel, row and step strides 0.
struct Matrix {
    char* data;
    TypedView::Type type;
    int64_t row, group, state, step;

    // Lanes are the states of a group.
    TypedView of_group(int64_t g) const {
        TypedView view{data, type, row, state, step};
        view.data = data + g * group * view.size();
        return view;
    }
    // Lanes are channels, "steps" are states.
    TypedView of_channels() const { return {data, type, 0, group, state}; }
};

// The arguments and results. Absent ones have no data.
struct Problem {
    int64_t rows, channels, length, states, groups_B, groups_C, threads, softplus;  // no groups: constant in time
    TypedView u, delta, A;
    Matrix B, C;
    TypedView D, z, bias, initial;
    TypedView kept, out, last;  // the forward pass reads no further
    TypedView dout, dlast;
    TypedView du, ddelta, dA;
    Matrix dB, dC;
    TypedView dD, dz, dbias, dinitial;
};

// How the work is cut. A part's channels are of one group of B and one of C.
struct Cut {
    int64_t groups, per_part, parts, tasks, windows, segments;  // parts of a group; parts in all; windows of a segment

    // enough: parts to be made, where there are channels for them. Large parts read B and C less often.
    Cut(const Problem& p, int64_t enough)
        : groups(std::lcm(std::max<int64_t>(1, p.groups_B), std::max<int64_t>(1, p.groups_C))), per_part(128) {
        constexpr int LEAST_WINDOWS = 4, WORTH_IT = 3;  // a scan in segments takes almost twice the work
        const int64_t per_group = p.channels / groups, all_windows = (p.length + WINDOW - 1) / WINDOW;
        while (per_part > 16 && p.rows * groups * ((per_group + per_part - 1) / per_part) < enough) per_part /= 2;
        per_part = std::min(per_part, per_group);
        parts = (per_group + per_part - 1) / per_part;
        tasks = p.rows * groups * parts;
        segments = p.threads >= WORTH_IT * tasks ? p.threads / tasks : 1;
        segments = std::max<int64_t>(1, std::min(segments, all_windows / LEAST_WINDOWS));
        windows = (all_windows + segments - 1) / segments;
        segments = (all_windows + windows - 1) / windows;
    }

    int most_blocks() const { return (static_cast<int>(per_part) + W - 1) / W; }
};

// The channels [first, first + count) of one row, all of one group, over the steps [begin, end) of one segment.
struct Part {
    int64_t task, row, group, first, count, segment, begin, end;

    Part(const Problem& p, const Cut& cut, int64_t task, int64_t segment)
        : task(task), row(task / cut.parts / cut.groups), group(task / cut.parts % cut.groups), segment(segment),
          begin(segment * cut.windows * WINDOW), end(std::min(begin + cut.windows * WINDOW, p.length)) {
        const int64_t per_group = p.channels / cut.groups, offset = task % cut.parts * cut.per_part;
        first = group * per_group + offset;
        count = std::min(cut.per_part, per_group - offset);
    }

    int blocks() const { return (static_cast<int>(count) + W - 1) / W; }
    tiles::Window window(int block, int64_t step, int64_t steps) const {
        return {row, first + block * W, first + count, step, steps};
    }
    // What is read after a block's window that begins at `first`: that of the next block or, after the last block, the
    // first block's that begins at `then`, if there is one; of `most` steps.
    tiles::Window next(int block, int64_t first, int64_t then, int64_t most) const {
        const bool last = block + 1 == blocks();
        const int64_t step = last ? then : first, steps = step < begin ? 0 : std::min(most, end - step);
        return window(last ? 0 : block + 1, step, steps);
    }
    // Where the state before a block's window is kept, if it is: `kept` is (rows * windows, channels, states).
    tiles::Window kept(const Problem& p, const tiles::Window& w) const {
        const int64_t windows = (p.length - 1) / WINDOW, index = row * windows + w.step / WINDOW - 1;
        return {index, w.channel, w.channel + w.width, 0, w.step > 0 && w.steps > 0 ? p.states : 0};
    }
};

inline int window_length(const Problem& p, int64_t most = WINDOW) {
    return in_quads(static_cast<int>(std::min(most, p.length)));
}

template <class Work>
void for_each(const Problem& p, int64_t tasks, const Work& work) {
    if (!parallel::run(tasks, p.threads, work)) throw std::bad_alloc();
}

// work(part, scratch) for every part of every of so many segments, the first one being `from`.
template <class Work>
void for_each_part(const Problem& p, const Cut& cut, int64_t from, int64_t segments, const Work& work) {
    for_each(p, cut.tasks * segments, [&](int64_t i, Scratch& scratch) {
        work(Part(p, cut, i % cut.tasks, from + i / cut.tasks), scratch);
    });
}

// B or C as the inner loop wants it. If both are variable, channels share them: one number per step and state. If one
// is constant it differs between channels, and both are held per lane. So many states, `few`, lie side by side: that
// many at a time are wanted for one step after the other. 0: all.
template <bool per_lane, int few = 0>
class Input {
    using Number = std::conditional_t<per_lane, Lanes, float>;
    const Part& part;
    const bool constant;
    const int states, most, side;
    const TypedView view;
    Number* numbers;  // [block][state] if constant, else [state / side][step][side]
    Lanes* tile;

   public:
    // To be read `most` steps at a time.
    Input(const Problem& p, const Cut& cut, const Matrix& m, int64_t groups, const Part& of, int most, Scratch& scratch)
        : part(of), constant(groups == 0), states(static_cast<int>(p.states)), most(most), side(few ? few : states),
          view(constant ? m.of_channels() : m.of_group(of.group * groups / cut.groups)),
          numbers(reinterpret_cast<Number*>(scratch.take((states + side) * std::max(most, cut.most_blocks())))),
          tile(scratch.take(most)) {
        if constexpr (per_lane)
            for (int block = 0; constant && block < part.blocks(); ++block)
                tiles::load(numbers + block * states, view, part.window(block, 0, states));
    }

    // Zeros fill the last quad of steps.
    void read(int64_t first, int steps) {
        if (constant) return;
        for (int from = 0; from < states; from += W) {
            Lanes* to = tile;
            if constexpr (!per_lane)
                if (side == W) to = reinterpret_cast<Lanes*>(numbers + place(from));
            tiles::load(to, view, {part.row, from, states, first, steps});
            std::fill(to + steps, to + in_quads(steps), Lanes{});
            if (to == tile) distribute(from, in_quads(steps));
        }
    }

    // The numbers of a few states, those of a step being neighbours.
    struct Column {
        const Number* first;
        int by_step;

        const Number* operator[](int t) const { return first + t * by_step; }
    };
    // From a state on that is the first of a few. known: how many they are, where the compiler knows.
    template <int known = few>
    Column at(int block, int state) const {
        if (per_lane && constant) return {numbers + block * states + state, 0};
        return {numbers + place(state), known ? known : side};
    }

   private:
    int place(int state) const { return state / side * side * most; }

    void distribute(int from, int steps) {
        const int to = std::min(from + W, states), most_at_once = few ? few : W;
        for (int n = from; n < to; n += most_at_once) {
            const int count = std::min(most_at_once, to - n);
            Number* first = numbers + place(n) + n % side;
            for (int t = 0; t < steps; ++t) {
                const float* given = reinterpret_cast<const float*>(tile + t) + n - from;
                if constexpr (per_lane) std::transform(given, given + count, first + t * side, lanes::all);
                else if (count == few) std::copy_n(given, few, first + t * side);  // their number known to the compiler
                else std::copy_n(given, count, first + t * side);
            }
        }
    }
};

constexpr int FEW = 4;  // vectors side by side

// What the step sizes of a few steps are the softplus of.
template <int few>
LANES_INLINE void raw(const Columns& delta, Lanes bias, int t, Lanes* to) {
    LANES_UNROLL
    for (int i = 0; i < few; ++i) to[i] = delta[t + i] + bias;
}

// The larger in size in each lane; a NaN counts as larger than all.
LANES_INLINE Lanes larger(Lanes most, Lanes x) {
    const lanes::Words bits = (lanes::Words)lanes::abs(x), others = (lanes::Words)most;
    return (Lanes)(others > bits ? others : bits);
}

// Stores a few, each of which may be the largest.
template <int few>
LANES_INLINE void put(const Lanes* values, Lanes* to, Lanes& most) {
    LANES_UNROLL
    for (int i = 0; i < few; ++i) most = larger(most, to[i] = values[i]);
}

// delta -> the step size d; where asked for, also its derivative by delta. Returns the largest in each lane. One loop for
// each function: a processor that looks a few numbers ahead is held up by a long chain of operations. `spare` is as long
// as d, where delta may lie.
__attribute__((noinline)) inline Lanes step_sizes(const Problem& p, const lanes::Exp2& exp2, const Columns& delta, Lanes bias,
                                                  int steps, Lanes* d, Lanes* spare, Lanes* slope) {
    const lanes::Exp2 power = exp2;
    const lanes::Logarithms logarithms = lanes::logarithms;
    Lanes most{};
    if (p.softplus)
        lanes::side_by_side<FEW>(steps, [&](int t, auto few) __attribute__((always_inline)) {
            Lanes x[few];
            raw<few>(delta, bias, t, x);
            lanes::exp_minus_size<few>(power, x, spare + t);
        });
    for (int t = 0; slope && t < steps; ++t)
        slope[t] = p.softplus ? lanes::softplus_slope(delta[t] + bias, spare[t]) : lanes::all(1.0f);
    if (p.softplus)
        lanes::side_by_side<FEW>(steps, [&](int t, auto few) __attribute__((always_inline)) {
            Lanes x[few];
            raw<few>(delta, bias, t, x);
            lanes::softplus<few>(logarithms, x, spare + t, x);
            put<few>(x, d + t, most);
        });
    else
        for (int t = 0; t < steps; ++t) {
            const Lanes x = delta[t] + bias;
            put<1>(&x, d + t, most);
        }
    return most;
}

// y times z sigmoid(z).
__attribute__((noinline)) inline void gate(const lanes::Exp2& exp2, int steps, const Lanes* y, const Columns& z,
                                           const Columns& out) {
    const lanes::Exp2 power = exp2;
    lanes::side_by_side<FEW>(steps, [&](int t, auto few) __attribute__((always_inline)) {
        Lanes some[few], gates[few];
        std::copy_n(y + t, few(), some);
        z.get<few>(t, gates);
        lanes::gate<few>(power, some, gates);
        out.set<few>(t, some);
    });
}

// exp(d A) for a few states, in two factors.
template <bool near, int few>
LANES_INLINE void decays(const lanes::Exp2& exp2, Lanes d, const Lanes* rate, Lanes* first, Lanes* second) {
    if (near) return exp2.factors<few>(d, rate, first, second);
    LANES_UNROLL
    for (int i = 0; i < few; ++i) {
        first[i] = lanes::all(1.0f);
        second[i] = lanes::exp2_product(d, rate[i]);
    }
}

// Whether every product of a step size, of which these are the largest, and a rate is within what Exp2 can do.
inline bool all_near(Lanes largest_d, const Lanes* rate, int states) {
    const lanes::Words near = largest_d * std::accumulate(rate, rate + states, Lanes{}, larger) <= lanes::NEAR;
    int32_t all = -1;
    for (int i = 0; i < W; ++i) all &= near[i];
    return all != 0;
}

// A log2(e), so that exp(d A) = 2^(d rate).
inline void load_rates(const Problem& p, const Part& part, int block, Lanes* rate) {
    tiles::load(rate, p.A, part.window(block, 0, p.states));
    for (int n = 0; n < p.states; ++n) rate[n] *= lanes::LOG2E;
}

}  // namespace scan
