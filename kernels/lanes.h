// Vectors of float as wide as the processor's, and the few functions on them that the kernels need.
//
// GCC's vector extension, so that one text serves every instruction set. All functions pass NaN through.
#pragma once

#include <cstdint>
#include <cstring>
#if defined(__SSE__)
#include <xmmintrin.h>
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

inline Lanes max(Lanes bound, Lanes x) { return bound > x ? bound : x; }  // a NaN in x stays
inline Lanes abs(Lanes x) { return (Lanes)((Words)x & 0x7fffffff); }

// Adding this to a number leaves the nearest integer, k, in the low bits, with 127 more: the exponent field of 2^k.
constexpr float ROUND = 12582912.0f + 127.0f;  // 1.5 * 2^23

inline Lanes power_of_2(Lanes rounded) { return (Lanes)((Words)rounded << 23); }

// 2^(a b), to 1.5 units in the last place; exactly 1 at 0, exactly 0 from 2^-127 down, infinity from 2^127.5 up.
// What is left of the product beyond k comes from the exact product, by a fused multiply-add: the error of a rounded
// product would grow with its size.
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

constexpr float LOG2E = 1.44269504f;

// e^x for x <= 0, to 1.5 units in the last place also where x is large: ln 2 is taken off in two parts.
inline Lanes exp_negative(Lanes x) {
    x = max(all(-88.0f), x);
    Lanes rounded = x * LOG2E + ROUND, k = rounded - ROUND;
    Lanes r = x - k * 0.693359375f + k * 2.12194440e-4f;
    Lanes p = all(0.00139411109f);
    p = p * r + 0.00836915098f;
    p = p * r + 0.0416663529f;
    p = p * r + 0.166665052f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    return x > -88.0f ? p * power_of_2(rounded) : x - x;  // below: 0, or NaN
}

inline Lanes sigmoid(Lanes x) {
    Lanes e = exp_negative(-abs(x));
    Lanes numerator = x < 0.0f ? e : all(1.0f);
    return numerator / (1.0f + e);
}

// log(1 + e^x) = max(x, 0) + log1p(e^-|x|), and log1p(e) = 2 atanh(e / (2 + e)): no cancellation anywhere.
inline Lanes softplus(Lanes x) {
    Lanes e = exp_negative(-abs(x));
    Lanes s = e / (2.0f + e);
    Lanes q = s * s;
    Lanes p = all(0.140873286f);
    p = p * q + 0.139807094f;
    p = p * q + 0.200124269f;
    p = p * q + 0.33333158f;
    p = p * q + 1.0f;
    return max(all(0.0f), x) + 2.0f * s * p;
}

// tanh(x) = expm1(2x) / (expm1(2x) + 2), where expm1 = 2^k (e^r - 1) + (2^k - 1) keeps its accuracy near 0.
inline Lanes tanh(Lanes x) {
    const Lanes twice = 2.0f * abs(x), z = twice > 20.0f ? all(20.0f) : twice;  // tanh(10) is 1
    const Lanes rounded = z * LOG2E + ROUND, k = rounded - ROUND;
    const Lanes r = z - k * 0.693359375f + k * 2.12194440e-4f;
    Lanes p = all(0.00139411109f);
    p = p * r + 0.00836915098f;
    p = p * r + 0.0416663529f;
    p = p * r + 0.166665052f;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    const Lanes scale = power_of_2(rounded), e = p * r * scale + (scale - 1.0f);
    return (Lanes)((Words)(e / (e + 2.0f)) | ((Words)x & (int32_t)0x80000000));
}

inline Lanes shuffle(Lanes a, Lanes b, Words index) {
#if defined(__clang__)
    Lanes v;
    for (int i = 0; i < W; ++i) v[i] = index[i] < W ? a[index[i]] : b[index[i] - W];
    return v;
#else
    return __builtin_shuffle(a, b, index);
#endif
}

// Columns for rows in a square of W x W. Interleaving rows i and i + W/2, log2(W) times over, transposes.
inline void transpose(Lanes rows[W]) {
    Words low{}, high{};
    for (int i = 0; i < W; ++i) {
        low[i] = i / 2 + (i % 2) * W;
        high[i] = low[i] + W / 2;
    }
    for (int done = 1; done < W; done *= 2) {
        Lanes next[W];
        for (int i = 0; i < W / 2; ++i) {
            next[2 * i] = shuffle(rows[i], rows[i + W / 2], low);
            next[2 * i + 1] = shuffle(rows[i], rows[i + W / 2], high);
        }
        for (int i = 0; i < W; ++i) rows[i] = next[i];
    }
}

// Lane i of the result is the sum over the lanes of rows[i]. The rows are overwritten.
__attribute__((noinline)) inline Lanes sum_each(Lanes rows[W]) {
    for (int span = W / 2; span > 0; span /= 2) {
        Words low{}, high{};
        for (int i = 0; i < W; ++i) {
            low[i] = (i & ~span) + (i & span ? W : 0);
            high[i] = low[i] + span;
        }
        for (int i = 0; i < span; ++i)
            rows[i] = shuffle(rows[i], rows[i + span], low) + shuffle(rows[i], rows[i + span], high);
    }
    return rows[0];
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
