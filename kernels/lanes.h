// Vectors of float as wide as the processor's, and the few functions on them that the kernels need.
//
// GCC's vector extension, so that one text serves every instruction set. All functions pass NaN through.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace lanes {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Lanes __attribute__((vector_size(W * sizeof(float))));
typedef int32_t Words __attribute__((vector_size(W * sizeof(int32_t))));

inline Lanes all(float value) { return Lanes{} + value; }

inline Lanes load(const float* from) {
    Lanes v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

inline void store(float* to, Lanes v) { std::memcpy(to, &v, sizeof v); }

// Floats of 16 bits, as they lie in memory; they are converted when loaded and stored, to the nearest (of two equally
// near ones the even), and integer operations do it, so that denormals are right where they are flushed to 0.
struct BFloat16 {
    uint16_t bits;
};
struct Float16 {
    uint16_t bits;
};
typedef uint16_t Halves __attribute__((vector_size(W * sizeof(uint16_t))));

inline Words load_bits(const void* from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    return __builtin_convertvector(halves, Words);
}

inline void store_bits(void* to, Words words) {
    const Halves halves = __builtin_convertvector(words, Halves);
    std::memcpy(to, &halves, sizeof halves);
}

inline Lanes load(const BFloat16* from) { return (Lanes)(load_bits(from) << 16); }

inline void store(BFloat16* to, Lanes v) {
    const Words bits = (Words)v, rounded = bits + 0x7fff + (bits >> 16 & 1);
    store_bits(to, (v == v ? rounded : bits | 0x400000) >> 16);
}

inline Lanes load(const Float16* from) {
    constexpr int REBIAS = (127 - 15) << 23, LEAST = REBIAS + (1 << 23);  // the exponents; that of 2^-14
    const Words bits = load_bits(from), magnitude = (bits & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
    const Words denormal = (Words)((Lanes)(magnitude + LEAST) - (Lanes)(Words{} + LEAST));
    const Words normal = magnitude + REBIAS + (exponent == 0x0f800000 ? Words{} + REBIAS : Words{});
    return (Lanes)((exponent == 0 ? denormal : normal) | (bits & 0x8000) << 16);
}

inline void store(Float16* to, Lanes v) {
    constexpr int REBIAS = (127 - 15) << 23, LEAST = REBIAS + (1 << 23), BEYOND = 143 << 23;  // of 2^-14 and of 2^16
    const Words bits = (Words)v, magnitude = bits & 0x7fffffff;
    const Words denormal = (Words)((Lanes)magnitude + 0.5f) - (Words)all(0.5f);
    const Words normal = (magnitude - REBIAS + 0xfff + (magnitude >> 13 & 1)) >> 13;
    const Words not_finite = v == v ? Words{} + 0x7c00 : Words{} + 0x7e00;
    const Words half = magnitude >= BEYOND ? not_finite : magnitude < LEAST ? denormal : normal;
    store_bits(to, half | (bits >> 16 & 0x8000));
}

// A NaN in x stays.
#if defined(__AVX512F__)
inline Lanes max(Lanes bound, Lanes x) { return (Lanes)_mm512_max_ps((__m512)bound, (__m512)x); }
inline Lanes min(Lanes bound, Lanes x) { return (Lanes)_mm512_min_ps((__m512)bound, (__m512)x); }
#elif defined(__AVX__)
inline Lanes max(Lanes bound, Lanes x) { return (Lanes)_mm256_max_ps((__m256)bound, (__m256)x); }
inline Lanes min(Lanes bound, Lanes x) { return (Lanes)_mm256_min_ps((__m256)bound, (__m256)x); }
#else
inline Lanes max(Lanes bound, Lanes x) { return bound > x ? bound : x; }
inline Lanes min(Lanes bound, Lanes x) { return bound < x ? bound : x; }
#endif
inline Lanes abs(Lanes x) { return (Lanes)((Words)x & 0x7fffffff); }

// What the functions below do not show: a NaN goes through all of them, and all are within two units in the last place.

// Adding this to a number leaves the nearest integer, k, in the low bits, with 127 more: the exponent field of 2^k.
constexpr float ROUND = 12582912.0f + 127.0f;  // 1.5 * 2^23

inline Lanes power_of_2(Lanes rounded) { return (Lanes)((Words)rounded << 23); }

// 2^(a b); exactly 1 at 0, exactly 0 from 2^-127 down, infinity from 2^127.5 up. What is left of the product beyond k
// comes from the exact product, by a fused multiply-add: the error of a rounded product would grow with its size.
inline Lanes exp2_product(Lanes a, Lanes b) {
    const Lanes rounded = a * b + ROUND, most = all(ROUND + 128.0f);
    const Lanes capped = (Lanes)((Words)rounded < (Words)most ? (Words)rounded : (Words)most);
    const Lanes r = a * b - (capped - ROUND);
    Lanes p = all(0.000154614475f);
    p = p * r + 0.00133908674f;
    p = p * r + 0.00961805667f;
    p = p * r + 0.055503571f;
    p = p * r + 0.240226509f;
    p = p * r + 0.693147188f;
    p = p * r + 1.0f;
    return rounded <= ROUND - 127.0f ? Lanes{} : p * power_of_2(capped);
}

constexpr float LOG2E = 1.44269504f, LOG2E_REST = 1.92596303e-8f;

// 2^(a b) for |a b| <= NEAR, in fewer instructions. What both ways have near 0 is the slope of the curve: a factor near 1
// is applied thousands of times, so that an error that always has the same sign would add up.
constexpr float NEAR = 125.0f;

#if defined(__AVX512F__)
// 2^k times 2^(i / 16), of a table in a register, times what is left, by a cubic.
class Exp2 {
    static constexpr float ROUND_16 = 12582912.0f / 16;
    Lanes table;

    // rounded: ROUND_16 + k + i / 16, whose low bits are i. The instruction that scales takes the k of k + i / 16.
    Lanes power(Lanes rounded, Lanes r) const {
        const Lanes root = (Lanes)_mm512_permutexvar_ps((__m512i)rounded, (__m512)table);
        Lanes p = r * 0.0555041087f + 0.240226507f;
        p = p * r + 0.693147181f;
        return (Lanes)_mm512_scalef_ps((__m512)(p * (r * root) + root), (__m512)(rounded - ROUND_16));
    }

   public:
    Exp2() {
        for (int i = 0; i < W; ++i) table[i] = static_cast<float>(std::exp2(i / 16.0));
    }

    Lanes operator()(Lanes a, Lanes b) const {
        const Lanes rounded = a * b + ROUND_16;
        return power(rounded, a * b - (rounded - ROUND_16));
    }

    // e^x for |x| <= 87.
    Lanes e_to(Lanes x) const {
        const Lanes rounded = x * LOG2E + ROUND_16;
        return power(rounded, x * LOG2E - (rounded - ROUND_16) + x * LOG2E_REST);
    }
};
#else
class Exp2 {
    static Lanes power(Lanes rounded, Lanes r) {
        Lanes p = all(0.00132647273f);
        p = p * r + 0.00967151299f;
        p = p * r + 0.0555073358f;
        p = p * r + 0.240222424f;
        p = p * r + 0.693147004f;
        p = p * r + 1.0f;
        return p * power_of_2(rounded);
    }

   public:
    Lanes operator()(Lanes a, Lanes b) const {
        const Lanes rounded = a * b + ROUND;
        return power(rounded, a * b - (rounded - ROUND));
    }

    // e^x for |x| <= 87.
    Lanes e_to(Lanes x) const {
        const Lanes rounded = x * LOG2E + ROUND;
        return power(rounded, x * LOG2E - (rounded - ROUND) + x * LOG2E_REST);
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

// log(1 + e) = 2 atanh(e / (2 + e)) for 0 <= e <= 1.
inline Lanes log1p(Lanes e) {
    const Lanes s = e * reciprocal(2.0f + e), q = s * s;
    const Lanes p = (0.140873286f * q + 0.139807094f) * (q * q) + (0.200124269f * q + 0.33333158f);
    return 2.0f * s * (p * q + 1.0f);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|): no cancellation anywhere.
inline Lanes softplus(const Exp2& exp2, Lanes x) {
    return max(all(0.0f), x) + log1p(exp_negative(exp2, -abs(x)));
}

// The same for many: in two loops each, since a processor that looks a few numbers ahead is held up by a long chain of
// operations. `spare` is as long as x.
inline void softplus(const Exp2& exp2, int count, Lanes* x, Lanes* spare) {
    for (int i = 0; i < count; ++i) spare[i] = exp_negative(exp2, -abs(x[i]));
    for (int i = 0; i < count; ++i) x[i] = max(all(0.0f), x[i]) + log1p(spare[i]);
}

// y times x sigmoid(x).
inline void gate(const Exp2& exp2, int count, Lanes* y, const Lanes* x, Lanes* spare) {
    for (int i = 0; i < count; ++i) spare[i] = one_plus_exp_minus(exp2, x[i]);
    for (int i = 0; i < count; ++i) y[i] *= x[i] * reciprocal(spare[i]);
}

// A quotient of polynomials, odd by even, up to where tanh rounds to 1; the last line makes up for the guess.
inline Lanes tanh(Lanes x) {
    constexpr float LARGEST = 9.02f;
    x = max(all(-LARGEST), min(all(LARGEST), x));
    const Lanes q = x * x;
    Lanes p = 1.33190863e-8f * q + 2.05834913e-5f;
    p = p * q + 0.00349403522f;
    p = p * q + 0.133797184f;
    p = p * q + 1.0f;
    Lanes d = 7.76202569e-7f * q + 0.000328309397f;
    d = d * q + 0.0258710757f;
    d = d * q + 0.467130333f;
    d = d * q + 1.0f;
    p *= x;
#if defined(__AVX512F__)
    const Lanes guess = (Lanes)_mm512_rcp14_ps((__m512)d), refined = guess * (2.0f - d * guess), y = p * refined;
    return y + refined * (p - y * d);
#else
    return p / d;
#endif
}

// Where a call would send what lies in registers through memory.
#define LANES_INLINE __attribute__((always_inline)) inline

#if defined(__clang__)
#define LANES_UNROLL _Pragma("clang loop unroll(full)")
#else
#define LANES_UNROLL _Pragma("GCC unroll 16")
#endif

inline Lanes shuffle(Lanes a, Lanes b, Words index) {
#if defined(__clang__)
    Lanes v;
    for (int i = 0; i < W; ++i) v[i] = index[i] < W ? a[index[i]] : b[index[i] - W];
    return v;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// Rows i and i + span of every 2 span rows exchange the halves of every 2 span columns that are not theirs.
template <int span>
LANES_INLINE void exchange(Lanes rows[W]) {
    Words low{}, high{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        low[i] = i & span ? W + i - span : i;
        high[i] = i & span ? W + i : i + span;
    }
    LANES_UNROLL
    for (int i = 0; i < W; ++i)
        if (!(i & span)) {
            const Lanes a = rows[i], b = rows[i + span];
            rows[i] = shuffle(a, b, low);
            rows[i + span] = shuffle(a, b, high);
        }
}

// Columns for rows in a square of W x W.
LANES_INLINE void transpose(Lanes rows[W]) {
    exchange<1>(rows);
    exchange<2>(rows);
    if constexpr (W > 4) exchange<4>(rows);
    if constexpr (W > 8) exchange<8>(rows);
}

// Rows i and i + span become one, whose lanes are sums of two lanes, `span` apart, of the one or the other.
template <int span>
LANES_INLINE void add_pairs(Lanes rows[2 * span]) {
    Words own{}, other{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        own[i] = i & span ? W + i : i;
        other[i] = own[i] ^ span;
    }
    LANES_UNROLL
    for (int i = 0; i < span; ++i) rows[i] = shuffle(rows[i], rows[i + span], own) + shuffle(rows[i], rows[i + span], other);
}

// Lane i of the result is the sum over the lanes of rows[i]. Halves of neighbouring rows are exchanged by reading from
// between them, which leaves the processor's only shuffle unit to the later, smaller exchanges.
__attribute__((noinline)) inline Lanes sum_each(const Lanes rows[W]) {
    Lanes sums[W / 2];
    Words is_high{}, places{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        is_high[i] = i < W / 2 ? 0 : -1;
        places[i] = i / 2 + i % 2 * (W / 2);
    }
    LANES_UNROLL
    for (int i = 0; i < W / 2; ++i) {
        const Lanes outer = is_high ? rows[2 * i + 1] : rows[2 * i];
        sums[i] = outer + load(reinterpret_cast<const float*>(rows + 2 * i) + W / 2);
    }
    if constexpr (W > 8) add_pairs<4>(sums);
    if constexpr (W > 4) add_pairs<2>(sums);
    add_pairs<1>(sums);
    return shuffle(sums[0], sums[0], places);
}

// Within its scope, numbers too small for a normal float are 0: a decayed state would otherwise run at a tenth of the
// speed.
class FlushDenormals {
#if defined(__SSE__)
    unsigned saved = _mm_getcsr();

   public:
    FlushDenormals() { _mm_setcsr(saved | 0x8040); }
    ~FlushDenormals() { _mm_setcsr(saved); }
#endif
};

}  // namespace lanes
