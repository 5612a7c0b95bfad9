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

// Products of which Exp2 raises 2 to the power. What all ways have near 0 is the slope of the curve: a factor near 1 is
// applied thousands of times, so that an error that always has the same sign would add up. Where the product is 0 it is
// exactly 1.
constexpr float NEAR = 120.0f;

#if defined(__AVX512F__)
// A constant in a register: GCC would rather fetch it from memory at each use, which takes as long as to multiply.
inline Lanes held(float x) {
    Lanes constant = all(x);
    asm("" : "+v"(constant));
    return constant;
}

inline Lanes find(Lanes table, Lanes index) { return (Lanes)_mm512_permutexvar_ps((__m512i)index, (__m512)table); }

// x 2^floor(power)
inline Lanes scale(Lanes x, Lanes power) { return (Lanes)_mm512_scalef_ps((__m512)x, (__m512)power); }

// 2^k times a root, of a table in registers, times a cubic in r, which is left. A product of the two is rounded to exactly
// 1 where both are those of 0, so that their scale is free: that of a cubic whose greatest coefficient is 1 saves a
// multiplication. Those are what holds a loop up; additions have units of their own in AMD's processors.
class Exp2 {
    static constexpr float ROUND_16 = 12582912.0f / 16;  // leaves the nearest k + i / 16, in the low bits 16 k + i

    // A shift of r by what the cubic's square would need, but for 0.4 %, rids it of that. The constants' roundings cancel.
    static constexpr float SHIFT = 23.0f / 16, ROOT = 0.0557069592f;
    static LANES_INLINE Lanes cubic(Lanes t) { return t * (t * t + 6.24352074f) + 6.00555849f; }

    static constexpr float SIX = 6.00000143f;  // its inverse happens to be a float

    const Lanes round = held(ROUND_16), log2e = held(LOG2E), ln2 = held(LN2), three = held(SIX / 2), six = held(SIX);
    Lanes shifted, sixths;  // 2^(i / 16), in multiples of ROOT and a power of 2, and in sixths

   public:
    Exp2() {
        for (int i = 0; i < W; ++i) {
            const double root = std::exp2(i / 16.0);
            shifted[i] = static_cast<float>(root * ROOT * std::exp2(-std::floor(i / 16.0 - SHIFT)));
            sixths[i] = static_cast<float>(root / SIX);
        }
    }

    // 2^(a b[i]) for |a b[i]| <= NEAR, of the rounded products, for a few at a time: their chains run side by side.
    template <int few>
    LANES_INLINE void powers(Lanes a, const Lanes* b, Lanes* to) const {
        Lanes product[few], rounded[few];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) {
            product[i] = a * b[i];
            asm("" : "+v"(product[i]));  // additions shall do the rest, so it may not become a part of one
        }
        LANES_UNROLL
        for (int i = 0; i < few; ++i) rounded[i] = product[i] + ROUND_16;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) {
            const Lanes unshifted = rounded[i] - (ROUND_16 + SHIFT);
            to[i] = cubic(product[i] - unshifted) * scale(find(shifted, rounded[i]), unshifted);
        }
    }

    // e^x for |x| <= 88, for a few side by side; exactly 1 at 0, and 0 below 2^-126 where denormals are. The cubic is six
    // times the series', whose rest is 1e-8; ln 2 as a float is off by 2e-9: at |x| = 20 that makes 6e-8 of an error of
    // 1.7e-7 in all.
    template <int few>
    LANES_INLINE void e_to(const Lanes* x, Lanes* to) const {
        Lanes rounded[few], r[few];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) rounded[i] = x[i] * log2e + round;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) r[i] = x[i] - (rounded[i] - round) * ln2;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) r[i] = ((r[i] + three) * r[i] + six) * r[i] + six;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) to[i] = scale(r[i] * find(sixths, rounded[i]), rounded[i] - round);
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
    // 2^(a b[i]) for |a b[i]| <= NEAR.
    template <int few>
    LANES_INLINE void powers(Lanes a, const Lanes* b, Lanes* to) const {
        LANES_UNROLL
        for (int i = 0; i < few; ++i) {
            const Lanes rounded = a * b[i] + ROUND;
            to[i] = power(rounded, a * b[i] - (rounded - ROUND));
        }
    }

    // e^x for |x| <= 88; 0 below 2^-126.5.
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
// log(1 + e) = log(1 + r) - log(q), where q = 1 / (1 + i / 15) for the nearest i and r = (1 + e) q - 1.
class Logarithms {
    const Lanes round = held(12582912.0f), fifteen = held(15.0f), one = held(1.0f), second = held(-0.5000003f),
                third = held(0.3335051f), fourth = held(-0.24941322f);
    Lanes quotients, less_one, logarithms;  // q, q - 1, -log(q)

   public:
    Logarithms() {
        for (int i = 0; i < W; ++i) {
            quotients[i] = 1 / (1 + i / 15.0f);
            less_one[i] = quotients[i] - 1;
            logarithms[i] = static_cast<float>(-std::log(double{quotients[i]}));
        }
    }

    // log(1 + e) + more for 0 <= e <= 1.
    template <int few>
    LANES_INLINE void log1p(const Lanes* e, const Lanes* more, Lanes* to) const {
        Lanes index[few], r[few], sum[few];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) index[i] = e[i] * fifteen + round;
        LANES_UNROLL
        for (int i = 0; i < few; ++i) r[i] = e[i] * find(quotients, index[i]) + find(less_one, index[i]);
        LANES_UNROLL
        for (int i = 0; i < few; ++i) sum[i] = find(logarithms, index[i]) + more[i];
        LANES_UNROLL
        for (int i = 0; i < few; ++i) to[i] = (((fourth * r[i] + third) * r[i] + second) * r[i] + one) * r[i] + sum[i];
    }
};

// e^-|x|; a NaN becomes 0.
template <int few>
LANES_INLINE void exp_minus_size(const Exp2& exp2, const Lanes* x, Lanes* to) {
    constexpr int LEAST_SIZE = 2, NEGATIVE = 3 << 2;
    LANES_UNROLL
    for (int i = 0; i < few; ++i)
        to[i] = (Lanes)_mm512_range_ps((__m512)x[i], (__m512)all(88.03f), LEAST_SIZE | NEGATIVE);
    exp2.e_to<few>(to, to);
}

// x, or what is nearest to it in size up to the bound; a NaN becomes the bound.
inline Lanes within(Lanes bound, Lanes x) {
    constexpr int LEAST_SIZE = 2;
    return (Lanes)_mm512_range_ps((__m512)x, (__m512)bound, LEAST_SIZE);
}
#else
// log(1 + e) = 2 atanh(e / (2 + e)).
struct Logarithms {
    // log(1 + e) + more for 0 <= e <= 1.
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
    Lanes y;
    exp_minus_size<1>(exp2, &x, &y);
    softplus<1>(logarithms, &x, &y, &y);
    return y;
}

// Its derivative, the sigmoid.
inline Lanes softplus_slope(Lanes x, Lanes exp_minus_size) {
    return (x < 0.0f ? exp_minus_size : all(1.0f)) * reciprocal(1.0f + exp_minus_size);
}

// y times x sigmoid(x), for a few side by side.
template <int few>
LANES_INLINE void gate(const Exp2& exp2, Lanes* y, const Lanes* x) {
    Lanes divisor[few];
    LANES_UNROLL
    for (int i = 0; i < few; ++i) divisor[i] = -within(all(87.0f), x[i]);
    exp2.e_to<few>(divisor, divisor);
    LANES_UNROLL
    for (int i = 0; i < few; ++i) y[i] *= x[i] * reciprocal(1.0f + divisor[i]);
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
