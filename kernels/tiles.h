// Strided tensors of any layout, cut into tiles whose lanes are channels.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace tiles {

using lanes::Lanes;
using lanes::W;

// A (rows, channels, steps) tensor; strides in elements, no data = an absent argument.
struct View {
    float* data;
    int64_t row, channel, step;

    explicit operator bool() const { return data != nullptr; }
    float* at(int64_t r, int64_t c, int64_t s) const { return data + r * row + c * channel + s * step; }
};

// `width` channels of `steps` steps, in an array of lanes. Lanes from `width` on hold 0 and are not stored.
struct Window {
    int64_t row, channel, step;
    int width, steps;

    // Of the channels before `end`, the first W from `first` on.
    Window(int64_t row, int64_t first, int64_t end, int64_t step, int64_t steps)
        : row(row), channel(first), step(step), width(static_cast<int>(std::min<int64_t>(W, end - first))),
          steps(static_cast<int>(steps)) {}
};

__attribute__((noinline)) inline void load(Lanes* tile, const View& view, const Window& w) {
    const float* from = view.at(w.row, w.channel, w.step);
    int t = 0;
    if (w.width == W && view.channel == 1)
        for (; t < w.steps; ++t) tile[t] = lanes::load(from + t * view.step);
    if (w.width == W && view.step == 1)
        for (; t + W <= w.steps; t += W) {
            Lanes square[W];
            LANES_UNROLL
            for (int i = 0; i < W; ++i) square[i] = lanes::load(from + i * view.channel + t);
            lanes::transpose(square);
            LANES_UNROLL
            for (int i = 0; i < W; ++i) tile[t + i] = square[i];
        }
    for (; t < w.steps; ++t) {
        tile[t] = Lanes{};
        for (int i = 0; i < w.width; ++i) tile[t][i] = from[i * view.channel + t * view.step];
    }
}

// Asks for a window before its time, a line or so per step, so that it comes from memory while others are computed: all
// at once would fill the processor's queue.
class Ahead {
    const float* from;
    int64_t row, column;  // distance between channels, or steps; between lines of a channel, if it lies in lines
    int count;

   public:
    Ahead(const View& view, const Window& w) : from(nullptr), row(0), column(0), count(0) {
        constexpr int LINE = 64 / sizeof(float);
        if (!view || w.steps <= 0) return;
        from = view.at(w.row, w.channel, w.step);
        if (view.step == 1) row = view.channel, column = LINE, count = w.width * ((w.steps + LINE - 1) / LINE);
        else if (view.channel == 1) row = view.step, column = W * view.step, count = w.steps;
    }

    void fetch(int t) const {
        if (t < count) __builtin_prefetch(from + t % W * row + t / W * column, 0, 2);
    }
};

__attribute__((noinline)) inline void store(const Lanes* tile, const View& view, const Window& w) {
    float* to = view.at(w.row, w.channel, w.step);
    int t = 0;
    if (w.width == W && view.channel == 1)
        for (; t < w.steps; ++t) lanes::store(to + t * view.step, tile[t]);
    if (w.width == W && view.step == 1)
        for (; t + W <= w.steps; t += W) {
            Lanes square[W];
            LANES_UNROLL
            for (int i = 0; i < W; ++i) square[i] = tile[t + i];
            lanes::transpose(square);
            LANES_UNROLL
            for (int i = 0; i < W; ++i) lanes::store(to + i * view.channel + t, square[i]);
        }
    for (; t < w.steps; ++t)
        for (int i = 0; i < w.width; ++i) to[i * view.channel + t * view.step] = tile[t][i];
}

inline void load_or_zero(Lanes* tile, const View& view, const Window& w) {
    if (view) return load(tile, view, w);
    for (int t = 0; t < w.steps; ++t) tile[t] = Lanes{};
}

}  // namespace tiles
