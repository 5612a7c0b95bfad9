// Strided tensors of any layout, cut into tiles whose lanes are channels.
#pragma once

#include <algorithm>

#include "lanes.h"

namespace tiles {

using lanes::BLOCKS;
using lanes::Lanes;
using lanes::QUAD;
using lanes::W;

// A (rows, channels, steps) tensor; strides in elements, no data = an absent argument.
template <class Element>
struct ViewOf {
    Element* data;
    int64_t row, channel, step;

    explicit operator bool() const { return data != nullptr; }
    static int size() { return sizeof(Element); }
    Element* at(int64_t r, int64_t c, int64_t s) const { return data + r * row + c * channel + s * step; }
};
using View = ViewOf<float>;

// The same of a tensor whose dtype is known at run time only.
struct TypedView {
    void* data;
    enum Type : int64_t { FLOAT, BFLOAT16, FLOAT16 } type;
    int64_t row, channel, step;

    explicit operator bool() const { return data != nullptr; }
    int size() const { return type == FLOAT ? 4 : 2; }

    // work(this view, its elements being of a type)
    template <class Work>
    void with_type(const Work& work) const {
        if (type == FLOAT) work(of<float>());
        else if (type == BFLOAT16) work(of<lanes::BFloat16>());
        else work(of<lanes::Float16>());
    }

    // Its elements being known to be of a type.
    template <class Element>
    ViewOf<Element> of() const {
        return {static_cast<Element*>(data), row, channel, step};
    }
};

// `width` channels of `steps` steps, in an array of lanes. Lanes from `width` on hold 0 and are not stored.
struct Window {
    int64_t row, channel, step;
    int width, steps;

    // Of the channels before `end`, the first W from `first` on.
    Window(int64_t row, int64_t first, int64_t end, int64_t step, int64_t steps)
        : row(row), channel(first), step(step), width(static_cast<int>(std::min<int64_t>(W, end - first))),
          steps(static_cast<int>(steps)) {}

    // Without its first steps.
    Window from(int first) const { return {row, channel, channel + width, step + first, steps - first}; }
};

// What can be loaded and stored by rows, as steps are neighbours: so many steps, in whole squares; of what is absent none.
template <class AnyView>
int in_rows(const Window& w, const AnyView& view) {
    return view && w.width == W && view.step == 1 ? w.steps / W * W : 0;
}

// Of all of these together: none unless they are of one type.
template <class... Others>
int in_rows(const Window& w, const TypedView& view, const Others&... others) {
    const bool alike = ((others.type == view.type) && ...);
    return alike ? std::min({in_rows<TypedView>(w, view), in_rows<TypedView>(w, others)...}) : 0;
}

// Whether W steps of a row, from the window's begin on, are a line of memory each, which can be streamed.
inline bool in_lines(const Window& w, const TypedView& view) {
    const auto begin = reinterpret_cast<uintptr_t>(view.of<float>().at(w.row, w.channel, w.step));
    return lanes::STREAMS && view.type == TypedView::FLOAT && begin % sizeof(Lanes) == 0 && view.channel % W == 0;
}

// Of a square, the rows QUAD channels apart: W steps each.
template <class Element>
LANES_INLINE void load_rows(Lanes rows[BLOCKS], const ViewOf<Element>& view, const Window& w, int channel, int step) {
    const Element* from = view.at(w.row, w.channel + channel, w.step + step);
    LANES_UNROLL
    for (int k = 0; k < BLOCKS; ++k, from += QUAD * view.channel) rows[k] = lanes::load(from);
}

template <class Element>
LANES_INLINE void store_rows(const Lanes rows[BLOCKS], const ViewOf<Element>& view, const Window& w, int channel, int step) {
    Element* to = view.at(w.row, w.channel + channel, w.step + step);
    LANES_UNROLL
    for (int k = 0; k < BLOCKS; ++k, to += QUAD * view.channel) lanes::store(to, rows[k]);
}

// The first `steps` steps of a window, in whole squares. change(rows, channel, step) may change the numbers while lanes
// are steps: of rows QUAD channels apart, from this channel and this step of the window on.
template <class Element, class Change>
LANES_INLINE void load_squares(Lanes* tile, const ViewOf<Element>& view, const Window& w, int steps, const Change& change) {
    for (int t = 0; t < steps; t += W) {
        Lanes square[W];
        LANES_UNROLL
        for (int i = 0; i < QUAD; ++i) {
            Lanes rows[BLOCKS];
            load_rows(rows, view, w, i, t);
            change(rows, i, t);
            lanes::exchange_blocks(rows);
            LANES_UNROLL
            for (int k = 0; k < BLOCKS; ++k) square[QUAD * k + i] = rows[k];
        }
        LANES_UNROLL
        for (int i = 0; i < 2 * BLOCKS; ++i)
            lanes::turn_half(square + i / 2 * QUAD, i % 2, tile + t + 2 * i, tile + t + 2 * i + 1);
    }
}

// The same the other way. Rows are stored late, as loads from the same place of another page, which `change` may need,
// would be held up.
template <class Element, class Change>
LANES_INLINE void store_squares(const Lanes* tile, const ViewOf<Element>& view, const Window& w, int steps, const Change& change) {
    LANES_UNROLL
    for (int half = 0; half < 2; ++half)
        for (int t = 0; t < steps; t += W) {
            Lanes rows[2][BLOCKS];
            LANES_UNROLL
            for (int k = 0; k < BLOCKS; ++k) lanes::turn_half(tile + t + QUAD * k, half, &rows[0][k], &rows[1][k]);
            LANES_UNROLL
            for (int i = 0; i < 2; ++i) {
                lanes::exchange_blocks(rows[i]);
                change(rows[i], 2 * half + i, t);
            }
            LANES_UNROLL
            for (int i = 0; i < 2; ++i) store_rows(rows[i], view, w, 2 * half + i, t);
        }
}

inline void as_they_are(const Lanes*, int, int) {}

template <class Element>
__attribute__((noinline)) void load(Lanes* tile, const ViewOf<Element>& view, const Window& w) {
    const Element* from = view.at(w.row, w.channel, w.step);
    int t = 0;
    if (w.width == W && view.channel == 1)
        for (; t < w.steps; ++t) tile[t] = lanes::load(from + t * view.step);
    else load_squares(tile, view, w, t = in_rows(w, view), as_they_are);
    for (; t < w.steps; ++t) {
        Element column[W]{};
        for (int i = 0; i < w.width; ++i) column[i] = from[i * view.channel + t * view.step];
        tile[t] = lanes::load(column);
    }
}

inline void load(Lanes* tile, const TypedView& view, const Window& w) {
    view.with_type([&](const auto& typed) { load(tile, typed, w); });
}

// Asks for a window before its time, in turns of a few neighbouring lines, so that it comes from memory while others are
// computed: all at once would fill the processor's queue.
class Ahead {
    static constexpr int FEW = 4, LINE = 64;
    const char* from;
    int64_t row, line;     // bytes from row to row, from line to line
    int lines, turns = 1;  // of a row

   public:
    template <class AnyView = TypedView>
    LANES_INLINE Ahead(const AnyView& view, const Window& w) : from(nullptr), row(0), line(0), lines(0) {
        if (!view || w.steps <= 0) return;
        const int size = view.size();
        from = static_cast<const char*>(static_cast<const void*>(view.data)) + size * (w.row * view.row + w.channel * view.channel + w.step * view.step);
        if (view.step == 1) row = size * view.channel, line = LINE, lines = (size * w.steps + LINE - 1) / LINE;
        else if (view.channel == 1) line = size * view.step, lines = (w.steps + W - 1) / W, row = lines * line;
        if (view.step == 1) find_pages(w.width);
        turns = std::max(1, (lines + FEW - 1) / FEW);
    }

    int turns_of_all() const { return lines > 0 ? W * turns : 0; }

    // Always inlined: GCC takes calls of a function that only fetches ahead for calls without effect, and drops them.
    // What lies behind a row's end is wanted soon as well, and harmless where nothing lies.
    LANES_INLINE void fetch(int turn) const {
        if (turn >= turns_of_all()) return;
        const char* first = from + turn / turns * row + turn % turns * FEW * line;
        LANES_UNROLL
        for (int k = 0; k < FEW; ++k) __builtin_prefetch(first + k * line, 0, 2);
    }

   private:
    // Fetches the ends of all rows, so that the pages on which they lie are looked up at the same time, where turn after
    // turn would wait for each. Of a row that is fetched in one turn, the first end will do.
    LANES_INLINE void find_pages(int rows) const {
        for (int i = 0; i < rows; ++i) {
            __builtin_prefetch(from + i * row, 0, 2);
            if (lines > FEW) __builtin_prefetch(from + i * row + lines * line - 1, 0, 2);
        }
    }
};

template <class Element>
__attribute__((noinline)) void store(const Lanes* tile, const ViewOf<Element>& view, const Window& w) {
    Element* to = view.at(w.row, w.channel, w.step);
    int t = 0;
    if (w.width == W && view.channel == 1)
        for (; t < w.steps; ++t) lanes::store(to + t * view.step, tile[t]);
    else store_squares(tile, view, w, t = in_rows(w, view), as_they_are);
    for (; t < w.steps; ++t) {
        Element column[W];
        lanes::store(column, tile[t]);
        for (int i = 0; i < w.width; ++i) to[i * view.channel + t * view.step] = column[i];
    }
}

inline void store(const Lanes* tile, const TypedView& view, const Window& w) {
    view.with_type([&](const auto& typed) { store(tile, typed, w); });
}

template <class AnyView>
inline void load_or_zero(Lanes* tile, const AnyView& view, const Window& w) {
    if (view) return load(tile, view, w);
    for (int t = 0; t < w.steps; ++t) tile[t] = Lanes{};
}

// W channels of a few steps: where they lie if those are floats side by side, else in a tile.
class Columns {
    float* data;
    int64_t stride;

    Columns(float* data, int64_t stride) : data(data), stride(stride) {}
    static View floats(const View& view) { return view; }
    static View floats(const TypedView& view) { return view.type == TypedView::FLOAT ? view.of<float>() : View{}; }
    static bool in_place(const View& view, const Window& w) { return view && view.channel == 1 && w.width == W; }

   public:
    static Columns of(Lanes* tile) { return {reinterpret_cast<float*>(tile), W}; }

    template <class AnyView>
    static Columns read(const AnyView& view, const Window& w, Lanes* tile) {
        if (!in_place(floats(view), w)) load(tile, view, w);
        return open(view, w, tile);
    }

    // To be written, then closed.
    template <class AnyView>
    static Columns open(const AnyView& view, const Window& w, Lanes* tile) {
        const View lie = floats(view);
        return in_place(lie, w) ? Columns(lie.at(w.row, w.channel, w.step), lie.step) : of(tile);
    }
    template <class AnyView>
    static void close(const AnyView& view, const Window& w, const Lanes* tile) {
        if (!in_place(floats(view), w)) store(tile, view, w);
    }

    LANES_INLINE Lanes operator[](int64_t t) const { return lanes::load(data + t * stride); }
    LANES_INLINE void set(int64_t t, Lanes value) const { lanes::store(data + t * stride, value); }

    // A few of them, from step t on.
    template <int few>
    LANES_INLINE void get(int64_t t, Lanes* to) const {
        LANES_UNROLL
        for (int i = 0; i < few; ++i) to[i] = operator[](t + i);
    }
    template <int few>
    LANES_INLINE void set(int64_t t, const Lanes* values) const {
        LANES_UNROLL
        for (int i = 0; i < few; ++i) set(t + i, values[i]);
    }
};

}  // namespace tiles
