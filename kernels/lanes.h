// Vectors of float as wide as the processor's.
//
// GCC's vector extension, so that one text serves every instruction set. All functions pass NaN through.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
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

// A float that is written past the caches, which need not fetch what is there before, nor lose what else they hold. Only
// where W of them are a line of memory, and by whole lines; a thread that has written some ends with `finish_streams`.
struct Streamed {
    float number;
};
#if defined(__AVX512F__)
constexpr bool STREAMS = true;
inline void store(Streamed* to, Lanes v) { _mm512_stream_ps(&to->number, (__m512)v); }
inline void finish_streams() { _mm_sfence(); }
#else
constexpr bool STREAMS = false;
inline void store(Streamed* to, Lanes v) { store(&to->number, v); }
inline void finish_streams() {}
#endif

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

// A square is of W x W numbers, in blocks of QUAD x QUAD, which most units can turn. To turn it, blocks take each other's
// places, and each is turned in itself; in either order.
constexpr int QUAD = 4, BLOCKS = W / QUAD;

// Block k of the i-th row, which is one of every QUAD rows, becomes block i of the k-th.
LANES_INLINE void exchange_blocks(Lanes rows[BLOCKS]) {
    Words even{}, odd{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        even[i] = 2 * (i & ~3) + i % 4;  // beyond W they are b's
        odd[i] = even[i] + 4;
    }
    LANES_UNROLL
    for (int span = 1; span < BLOCKS; span *= 2)
        LANES_UNROLL
        for (int i = 0; i < BLOCKS; ++i)
            if (!(i & span)) {
                const Lanes a = rows[i], b = rows[i + span];
                rows[i] = shuffle(a, b, even);
                rows[i + span] = shuffle(a, b, odd);
            }
}

// Of a quad of rows, the columns 0 and 1 of each block, or in the second half 2 and 3.
LANES_INLINE void turn_half(const Lanes quad[QUAD], int half, Lanes* first, Lanes* second) {
    Words pairs{}, left{}, right{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        const int block = i & ~3;
        pairs[i] = block + i % 4 / 2 + i % 2 * W + 2 * half;
        left[i] = block + i % 2 + i % 4 / 2 * W;
        right[i] = left[i] + 2;
    }
    const Lanes upper = shuffle(quad[0], quad[1], pairs), lower = shuffle(quad[2], quad[3], pairs);
    *first = shuffle(upper, lower, left);
    *second = shuffle(upper, lower, right);
}

// Columns for rows.
LANES_INLINE void transpose(Lanes square[W]) {
    Lanes rows[W];
    LANES_UNROLL
    for (int i = 0; i < W; i += QUAD)
        LANES_UNROLL
        for (int half = 0; half < 2; ++half)
            turn_half(square + i, half, rows + i + 2 * half, rows + i + 2 * half + 1);
    LANES_UNROLL
    for (int i = 0; i < QUAD; ++i) {
        Lanes some[BLOCKS];
        LANES_UNROLL
        for (int k = 0; k < BLOCKS; ++k) some[k] = rows[k * QUAD + i];
        exchange_blocks(some);
        LANES_UNROLL
        for (int k = 0; k < BLOCKS; ++k) square[k * QUAD + i] = some[k];
    }
}

// Of rows of W terms, in which blocks of 2 span lanes are terms of one sum, two become one: the halves of each block are
// added, so that blocks of span lanes are left. In the order that takes the cheapest shuffles: see sum_each.
template <int span>
LANES_INLINE Lanes halve(Lanes a, Lanes b) {
    constexpr int unit = span < 4 ? 4 : W, half = unit / 2;
    Words own{}, of_b{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) {
        const int place = i % half;
        of_b[i] = i % unit < half ? 0 : -1;
        own[i] = (span == W / 2 ? i : i / unit * unit + place / span * 2 * span + place % span) - of_b[i] * W;
    }
    const Lanes halves = span == W / 2 ? of_b ? b : a : shuffle(a, b, own);  // a choice, which more units can make
    return halves + shuffle(a, b, own ^ span);
}

// A quad of rows is halved twice, while other units have more to do.
LANES_INLINE Lanes halve_twice(const Lanes rows[QUAD]) {
    return halve<W / 4>(halve<W / 2>(rows[0], rows[1]), halve<W / 2>(rows[2], rows[3]));
}

// What is left to do with the W rows of W / QUAD quads: lane i of the result is the sum of the i-th row.
LANES_INLINE Lanes sum_quads(const Lanes quads[W / QUAD]) {
    Lanes sums = quads[0];
    if constexpr (W == 16) sums = halve<1>(halve<2>(quads[0], quads[1]), halve<2>(quads[2], quads[3]));
    if constexpr (W == 8) sums = halve<1>(quads[0], quads[1]);
    Words places{};
    LANES_UNROLL
    for (int i = 0; i < W; ++i) places[i] = i % (W / 4) * 4 + i / (W / 4);
    return shuffle(sums, sums, places);
}

// Lane i of the result is the sum over the lanes of rows[i].
__attribute__((noinline)) inline Lanes sum_each(const Lanes rows[W]) {
    Lanes quads[W / QUAD];
    LANES_UNROLL
    for (int i = 0; i < W / QUAD; ++i) quads[i] = halve_twice(rows + i * QUAD);
    return sum_quads(quads);
}

// Calls work(i, n) for every n vectors from the i-th of `count` on, where n, known to the compiler, is few, in the end 1.
template <int few, class Work>
LANES_INLINE void side_by_side(int count, const Work& work) {
    int i = 0;
    for (; i + few <= count; i += few) work(i, std::integral_constant<int, few>{});
    for (; i < count; ++i) work(i, std::integral_constant<int, 1>{});
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
