// States in memory, of three types, as lanes of float.
#pragma once

#include "../lanes.h"

namespace numbers {

using lanes::Lanes;
using lanes::W;
using lanes::Words;

typedef uint16_t Halves __attribute__((vector_size(W * sizeof(uint16_t))));

// What each type is made of in memory (Cell), W of them (Cells), and the way to lanes and back: to the nearest, ties to
// even.
struct Single {
    using Cell = float;
    using Cells = Lanes;
    static Lanes widen(Cells v) { return v; }
    static Cells narrow(Lanes v) { return v; }
};

struct Brain {
    using Cell = uint16_t;
    using Cells = Halves;

    static Lanes widen(Cells v) { return (Lanes)(__builtin_convertvector(v, Words) << 16); }

    static Cells narrow(Lanes v) {
        const Words bits = (Words)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
        const Words kept = v == v ? rounded : Words{} + 0x7fc00000;
        return __builtin_convertvector(kept >> 16, Halves);
    }
};

// Its exponent is 112 less than a float's, its fraction 13 bits shorter. Below 2^-14 it is a multiple of 2^-24, which
// the sum with a larger number brings out: no float on the way is too small to be normal.
struct Half {
    using Cell = uint16_t;
    using Cells = Halves;
    static constexpr int32_t REBIAS = 112 << 23, LEAST = 113 << 23, INFINITE = 0x7c00;

    static Lanes widen(Cells v) {
        const Words bits = __builtin_convertvector(v, Words), size = bits & 0x7fff;
        const Words normal = (size << 13) + REBIAS;
        const Words small = (Words)((Lanes)((size << 13) + LEAST) - 0x1p-14f);
        const Words found = size < 0x400 ? small : size >= INFINITE ? normal + REBIAS : normal;
        return (Lanes)(found | (bits & 0x8000) << 16);
    }

    static Cells narrow(Lanes v) {
        const Words bits = (Words)v, size = bits & 0x7fffffff;
        const Words normal = (size - REBIAS + 0xfff + (size >> 13 & 1)) >> 13;
        const Words small = (Words)((Lanes)size + 0.5f) - 0x3f000000;
        const Words finite = size < LEAST ? small : normal;
        const Words large = size > 0x7f800000 ? Words{} + 0x7e00 : Words{} + INFINITE;
        const Words found = size >= 143 << 23 ? large : finite;
        return __builtin_convertvector(found | (bits >> 16 & 0x8000), Halves);
    }
};

// `count` <= W numbers that lie `stride` apart; the lanes from `count` on are 0, and are not stored. `whole` says that
// they are W, side by side.
template <class Number, bool whole = false>
inline Lanes load(const typename Number::Cell* from, int64_t stride, int count) {
    typename Number::Cells cells{};
    if constexpr (whole) std::memcpy(&cells, from, sizeof cells);
    else
        for (int i = 0; i < count; ++i) cells[i] = from[i * stride];
    return Number::widen(cells);
}

template <class Number, bool whole = false>
inline void store(typename Number::Cell* to, int64_t stride, int count, Lanes v) {
    const typename Number::Cells cells = Number::narrow(v);
    if constexpr (whole) std::memcpy(to, &cells, sizeof cells);
    else
        for (int i = 0; i < count; ++i) to[i * stride] = cells[i];
}

}  // namespace numbers
