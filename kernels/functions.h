// The few functions on vectors of float that the kernels need.
#pragma once

#include <cmath>

#include "lanes.h"

namespace lanes {

// What the functions below do not show: a NaN goes through all of them, and all are within a few units in the last place.

// Adding this to a number leaves the nearest integer, k, in the low bits, with 127 more: the exponent field of 2^k.
constexpr float ROUND = 12582912.0f + 127.0f;  // 1.5 * 2^23

// Of the coefficients, the greatest power's first.
template <class... Floats>
LANES_INLINE Lanes polynomial(Lanes x, float first, Floats... rest) {
    Lanes sum = all(first);
    ((sum = sum * x + rest), ...);
    return sum;
}

inline Lanes power_of_2(Lanes rounded) { return (Lanes)((Words)rounded << 23); }

// 2^(a b); exactly 1 at 0, exactly 0 from 2^-127 down, infinity from 2^127.5 up. What is left of the product beyond k
// comes from the exact product, by a fused multiply-add: the error of a rounded product would grow with its size.
inline Lanes exp2_product(Lanes a, Lanes b) {
    const Lanes rounded = a * b + ROUND, most = all(ROUND + 128.0f);
    const Lanes capped = (Lanes)((Words)rounded < (Words)most ? (Words)rounded : (Words)most);
    const Lanes r = a * b - (capped - ROUND);
    const Lanes p = polynomial(r, 0.000154614475f, 0.00133908674f, 0.00961805667f, 0.055503571f, 0.240226509f,
                               0.693147188f, 1.0f);
    return rounded <= ROUND - 127.0f ? Lanes{} : p * power_of_2(capped);
}

constexpr float LOG2E = 1.44269504f, LOG2E_REST = 1.92596303e-8f, LN2 = 0.693147181f;

// 2^(a b) for |a b| <= NEAR, in fewer instructions. What all ways have near 0 is the slope of the curve: a factor near
// 1 is applied thousands of times, so that an error that always has the same sign would add up.
constexpr float NEAR = 120.0f;

#if defined(__AVX512F__)
// x, of which the compiler knows no more than that it is in a register.
LANES_INLINE Lanes opaque(Lanes x) {
    asm("" : "+v"(x));
    return x;
}

// In a register: GCC would fetch a constant from memory at each use, and a loop can be held up by what it loads.
inline Lanes held(float x) { return opaque(all(x)); }

// x; what is pinned is computed in the order of the text.
template <class Vector>
LANES_INLINE Vector pinned(Vector x) {
    asm volatile("" : "+v"(x));
    return x;
}

// 2^k times a root, of a table in registers, times what is left, by a cubic. Multiplications are what holds a loop up;
// additions, of integers too, are as good as free, as AMD's processors have units of their own for them.
class Exp2 {
    static constexpr float ROUND_16 = 12582912.0f / 16, ROUND_32 = 12582912.0f / 32;
    const Lanes log2e = held(LOG2E), ln2 = held(LN2), half = held(0.5f), almost_1 = held(1.00001466f),
                round_times_16 = held(ROUND_32 + 4);  // makes up for the 16 by which the roots are divided
    Words sixteenths, halves[2];  // bits of 2^(i / 16), less i << 19; of 2^(i / 32) / 16, less i << 18

    template <int steps>
    static int32_t entry(int i, float part) {
        const float number = static_cast<float>(std::exp2(i / double{steps})) * part;
        int32_t bits;
        std::memcpy(&bits, &number, sizeof bits);
        return bits - i * ((1 << 23) / steps);
    }

    // rounded: ROUND_16 + k + i / 16, whose low bits are 16 k + i.
    LANES_INLINE Lanes power(Lanes rounded, Lanes r) const {
        const auto found = (Words)_mm512_permutexvar_epi32((__m512i)rounded, (__m512i)sixteenths);
        const Lanes root = (Lanes)(found + ((Words)rounded << 19));
        return polynomial(r, 0.0555041087f, 0.240226507f, 0.693147181f) * r * root + root;
    }

    static constexpr float SHIFT = 41.0f / 32;  // see sixteen

   public:
    Exp2() {
        for (int i = 0; i < W; ++i) {
            sixteenths[i] = entry<16>(i, 1.0f);
            for (int k = 0; k < 2; ++k) halves[k][i] = entry<32>(k * W + i, 1.0f / 16);
        }
    }

    Lanes operator()(Lanes a, Lanes b) const {
        const Lanes rounded = a * b + ROUND_16;
        return power(rounded, a * b - (rounded - ROUND_16));
    }

    // 2^product is sixteen(rest) times root, which are 16 times too large and too small. At 0 neither rounds: h is h times
    // the root times sixteen. A product must be opaque, or additions to it would become multiplications.
    static LANES_INLINE Lanes rounded(Lanes product) { return product + ROUND_32; }  // 32 k + i in its low bits
    static LANES_INLINE Lanes shifted(Lanes rounded) { return rounded - (ROUND_32 + SHIFT); }
    static LANES_INLINE Lanes rest(Lanes product, Lanes rounded) { return product - shifted(rounded); }

    // 2^(k + i / 32) / 16
    LANES_INLINE Lanes root(Lanes rounded) const { return (Lanes)(found(rounded) + exponent(rounded)); }
    LANES_INLINE Words found(Lanes rounded) const {
        return (Words)_mm512_permutex2var_epi32((__m512i)halves[0], (__m512i)rounded, (__m512i)halves[1]);
    }
    static LANES_INLINE Words exponent(Lanes rounded) { return (Words)rounded << 18; }

    // 16 * 2^r for |r| <= 1 / 64, where the greatest coefficient may as well be 1. Then there is a shift of r, t, which
    // rids the cubic of its square. At r = 0 it is 16 but for 1.5e-8, which is rounded away; the slope is right to 4e-7.
    static LANES_INLINE Lanes sixteen(Lanes t) { return sixteen(t, slope(t)); }
    static LANES_INLINE Lanes sixteen(Lanes t, Lanes slope) { return t * slope + 5.99708128f; }
    static LANES_INLINE Lanes slope(Lanes t) { return t * t + 6.16555452f; }

    // The two factors, for a few b at a time: their chains of operations run side by side.
    template <int count>
    LANES_INLINE void factors(Lanes a, const Lanes* b, Lanes* first, Lanes* second) const {
        LANES_UNROLL
        for (int i = 0; i < count; ++i) first[i] = opaque(a * b[i]);
        LANES_UNROLL
        for (int i = 0; i < count; ++i) second[i] = rounded(first[i]);
        LANES_UNROLL
        for (int i = 0; i < count; ++i) first[i] = sixteen(rest(first[i], second[i]));
        LANES_UNROLL
        for (int i = 0; i < count; ++i) second[i] = root(second[i]);
    }

    // In one.
    template <int count>
    LANES_INLINE void powers(Lanes a, const Lanes* b, Lanes* to) const {
        Lanes first[count], second[count];
        factors<count>(a, b, first, second);
        LANES_UNROLL
        for (int i = 0; i < count; ++i) to[i] = first[i] * second[i];
    }

    // e^x for |x| <= 87; where denormals are 0, that too below. Exactly 0 at -88.03, which is rounded to 2^-127. The
    // parabola is off by 5e-8, which is less than rounding adds, and ln 2 as a float by 2e-9: at |x| = 20 by 6e-8 in all.
    template <int few>
    LANES_INLINE void e_to(const Lanes* x, Lanes* to) const {
        Lanes rounded[few], r[few], parabola[few];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) rounded[i] = x[i] * log2e + round_times_16;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) r[i] = x[i] - (rounded[i] - round_times_16) * ln2;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) parabola[i] = (half * r[i] + almost_1) * r[i];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) {
            const Lanes power = root(rounded[i]);
            to[i] = parabola[i] * power + power;
        }
    }
    Lanes e_to(Lanes x) const {
        e_to<1>(&x, &x);
        return x;
    }
};
#else
class Exp2 {
    static Lanes power(Lanes rounded, Lanes r) {
        return polynomial(r, 0.00132647273f, 0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.0f) *
               power_of_2(rounded);
    }

   public:
    Lanes operator()(Lanes a, Lanes b) const {
        const Lanes rounded = a * b + ROUND;
        return power(rounded, a * b - (rounded - ROUND));
    }

    // For a few b at a time.
    template <int count>
    LANES_INLINE void powers(Lanes a, const Lanes* b, Lanes* to) const {
        LANES_UNROLL
        for (int i = 0; i < count; ++i) to[i] = operator()(a, b[i]);
    }

    // In two factors.
    template <int count>
    LANES_INLINE void factors(Lanes a, const Lanes* b, Lanes* first, Lanes* second) const {
        LANES_UNROLL
        for (int i = 0; i < count; ++i) first[i] = all(1.0f);
        powers<count>(a, b, second);
    }

    // e^x for |x| <= 87.
    Lanes e_to(Lanes x) const {
        const Lanes rounded = x * LOG2E + ROUND;
        return power(rounded, x * LOG2E - (rounded - ROUND) + x * LOG2E_REST);
    }
    template <int few>
    LANES_INLINE void e_to(const Lanes* x, Lanes* to) const {
        LANES_UNROLL
        for (int i = 0; i < few; ++i) to[i] = e_to(x[i]);
    }
};
#endif

// 1 / x for 2^-126 <= x <= 2^126.
inline Lanes reciprocal(Lanes x) {
#if defined(__AVX512F__)
    const Lanes guess = (Lanes)_mm512_rcp14_ps((__m512)x);
    return guess * (2.0f - x * guess);
#else
    return 1.0f / x;
#endif
}

// e^x for x <= 0.
inline Lanes exp_negative(const Exp2& exp2, Lanes x) {
    const Lanes e = exp2.e_to(max(all(-87.0f), x));
    return x < -87.0f ? Lanes{} : e;
}

inline Lanes one_plus_exp_minus(const Exp2& exp2, Lanes x) {
    return 1.0f + exp2.e_to(max(all(-87.0f), min(all(87.0f), -x)));
}

inline Lanes sigmoid(const Exp2& exp2, Lanes x) {
    const Lanes s = reciprocal(one_plus_exp_minus(exp2, x));
    return x < -87.0f ? Lanes{} : s;
}

#if defined(__AVX512DQ__)
// log(1 + e) for 0 <= e <= 1: that of the nearest 1 + i / 16, and of the quotient of the two.
class Logarithms {
    const Lanes round_16 = held(12582912.0f / 16), fourth = held(-0.250230402f), third = held(0.333495259f),
                second = held(-0.49999994f);
    Lanes logarithms[2], inverses[2];  // log(1 + i / 16) and 1 / (1 + i / 16) for 0 <= i <= 16

    static LANES_INLINE Lanes find(const Lanes table[2], Lanes index) {
        return (Lanes)_mm512_permutex2var_ps((__m512)table[0], (__m512i)index, (__m512)table[1]);
    }

   public:
    Logarithms() {
        for (int i = 0; i < 2 * W; ++i) {
            logarithms[i / W][i % W] = static_cast<float>(std::log1p(i / 16.0));
            inverses[i / W][i % W] = static_cast<float>(1 / (1 + i / 16.0));
        }
    }

    // log(1 + e) + more
    template <int few>
    LANES_INLINE void log1p(const Lanes* e, const Lanes* more, Lanes* to) const {
        Lanes rounded[few], r[few], rest[few];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) rounded[i] = e[i] + round_16;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) r[i] = (e[i] - (rounded[i] - round_16)) * find(inverses, rounded[i]);
        LANES_UNROLL
        for (int i = 0; i < few; ++i) rest[i] = (fourth * r[i] + third) * r[i] + second;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) to[i] = more[i] + (rest[i] * (r[i] * r[i]) + r[i] + find(logarithms, rounded[i]));
    }
};

// e^-|x|; a NaN becomes 0.
template <int few>
LANES_INLINE void exp_minus_size(const Exp2& exp2, const Lanes* x, Lanes* to) {
    constexpr int LEAST_SIZE = 2, NEGATIVE = 3 << 2;
    Lanes negative[few];
    LANES_UNROLL
    for (int i = 0; i < few; ++i)
        negative[i] = (Lanes)_mm512_range_ps((__m512)x[i], (__m512)all(88.03f), LEAST_SIZE | NEGATIVE);
    exp2.e_to<few>(negative, to);
}

// x, or what is nearest to it in size up to the bound; a NaN becomes the bound.
inline Lanes within(Lanes bound, Lanes x) {
    constexpr int LEAST_SIZE = 2;
    return (Lanes)_mm512_range_ps((__m512)x, (__m512)bound, LEAST_SIZE);
}
#else
// log(1 + e) = 2 atanh(e / (2 + e)) for 0 <= e <= 1.
struct Logarithms {
    // log(1 + e) + more
    template <int few>
    LANES_INLINE void log1p(const Lanes* e, const Lanes* more, Lanes* to) const {
        LANES_UNROLL
        for (int i = 0; i < few; ++i) {
            const Lanes s = e[i] * reciprocal(2.0f + e[i]), q = s * s;
            const Lanes p = (0.140873286f * q + 0.139807094f) * (q * q) + (0.200124269f * q + 0.33333158f);
            to[i] = more[i] + 2.0f * s * (p * q + 1.0f);
        }
    }
};

template <int few>
LANES_INLINE void exp_minus_size(const Exp2& exp2, const Lanes* x, Lanes* to) {
    LANES_UNROLL
    for (int i = 0; i < few; ++i) to[i] = exp_negative(exp2, -abs(x[i]));
}

inline Lanes within(Lanes bound, Lanes x) { return max(-bound, min(bound, x)); }
#endif

inline const Logarithms logarithms;

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): no cancellation anywhere.
template <int few>
LANES_INLINE void softplus(const Logarithms& logarithms, const Lanes* x, const Lanes* exp_minus_size, Lanes* to) {
    Lanes positive[few];
    LANES_UNROLL
    for (int i = 0; i < few; ++i) positive[i] = max(all(0.0f), x[i]);
    logarithms.log1p<few>(exp_minus_size, positive, to);
}
inline Lanes softplus(const Exp2& exp2, Lanes x) {
    Lanes e, y;
    exp_minus_size<1>(exp2, &x, &e);
    softplus<1>(logarithms, &x, &e, &y);
    return y;
}

// Its derivative, the sigmoid.
inline Lanes softplus_slope(Lanes x, Lanes exp_minus_size) {
    return (x < 0.0f ? exp_minus_size : all(1.0f)) * reciprocal(1.0f + exp_minus_size);
}

// y times x sigmoid(x), for a few side by side. A true division, which a unit of its own does while others have more to do.
template <int few>
LANES_INLINE void gate(const Exp2& exp2, Lanes* y, const Lanes* x) {
    Lanes e[few];
    LANES_UNROLL
    for (int i = 0; i < few; ++i) e[i] = -within(all(87.0f), x[i]);
    exp2.e_to<few>(e, e);
    LANES_UNROLL
    for (int i = 0; i < few; ++i) y[i] *= x[i] / (1.0f + e[i]);
}

// A quotient of polynomials, odd by even, up to where tanh rounds to 1; the last line makes up for the guess.
inline Lanes tanh(Lanes x) {
    constexpr float LARGEST = 9.02f;
    x = max(all(-LARGEST), min(all(LARGEST), x));
    const Lanes q = x * x;
    const Lanes p = x * polynomial(q, 1.33190863e-8f, 2.05834913e-5f, 0.00349403522f, 0.133797184f, 1.0f);
    const Lanes d = polynomial(q, 7.76202569e-7f, 0.000328309397f, 0.0258710757f, 0.467130333f, 1.0f);
#if defined(__AVX512F__)
    const Lanes guess = (Lanes)_mm512_rcp14_ps((__m512)d), refined = guess * (2.0f - d * guess), y = p * refined;
    return y + refined * (p - y * d);
#else
    return p / d;
#endif
}

}  // namespace lanes
