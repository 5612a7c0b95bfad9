// A step of sixteen states that stay in registers, its operations in the order of the text.
//
// What takes time is seven multiplications for each state, of which a processor begins one a cycle. It looks for the
// next one among the operations that follow, but not far. So five states are on their way at any time: a slot moves each
// of them on by a few operations, none of which has to wait for another state's.
#pragma once

#include <utility>

#include "cpu_problem.h"

#if defined(__AVX512F__)
namespace scan {

template <class Number>  // of B and C: see Input
class SixteenStates {
    static constexpr int COUNT = 16, UNDER_WAY = 5;
    using Each = Lanes[COUNT];
    const lanes::Exp2& exp2;
    const Lanes step, x;  // d, d u
    const Lanes* rate;
    const Number *B, *C;
    Lanes* h;
    Lanes sum;
    Each product, rounded, rest, sixteen, input;

    // Whether a slot has something to do for the state that is in this place.
    static constexpr bool has(int n) { return 0 <= n && n < COUNT; }

    // The best of hundreds of orders on a Zen 4, where half of them take 4 % longer, as does what GCC makes of a loop.
    template <int i>
    LANES_INLINE void slot() {
        using lanes::pinned;
        constexpr int b = i - 1, c = i - 2, d = i - 3, e = i - 4;
        if constexpr (has(d)) {
            const lanes::Words exponent = pinned(exp2.exponent(rounded[d])), found = pinned(exp2.found(rounded[d]));
            const Lanes root = (Lanes)pinned(found + exponent);
            sixteen[d] = pinned(exp2.sixteen(rest[d], pinned(exp2.slope(rest[d]))));
            h[d] = pinned(h[d] * root);
        }
        if constexpr (has(c)) {
            rest[c] = pinned(product[c] - pinned(exp2.shifted(rounded[c])));
            input[c] = pinned(x * B[c]);
        }
        if constexpr (has(i)) product[i] = pinned(step * rate[i]);
        if constexpr (has(b)) rounded[b] = pinned(exp2.rounded(product[b]));
        if constexpr (has(e)) sum = pinned(sum + h[e] * C[e]);
        if constexpr (has(d)) h[d] = pinned(h[d] * sixteen[d] + input[d]);
    }

    template <int... i>
    LANES_INLINE void slots(std::integer_sequence<int, i...>) {
        (slot<i>(), ...);
    }

   public:
    // d, u, B and C of one step; y: what is to be added to. h: the states before the step, then those after it.
    SixteenStates(const lanes::Exp2& power, Lanes d, Lanes u, Lanes y, const Lanes* a, const Number* B_t,
                  const Number* C_t, Lanes* states)
        : exp2(power), step(d), x(d * u), rate(a), B(B_t), C(C_t), h(states), sum(y) {}

    // Returns y.
    LANES_INLINE Lanes take() {
        slots(std::make_integer_sequence<int, COUNT + UNDER_WAY - 1>());
        return sum;
    }
};

}  // namespace scan
#endif
