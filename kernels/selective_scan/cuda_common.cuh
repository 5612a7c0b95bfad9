// What the kernels of the selective scan on the GPU share. No header is needed, so that NVRTC, nvcc and (for the tests,
// with EMULATED) g++ take the same text.
//
// One specialisation is made by these macros:
//   DTYPE     of u, delta, z, B, C, out and their gradients: 0 float32, 1 float16, 2 bfloat16
//   STATES    N
//   BACKWARD  1 for the kernels of the backward pass
//   LANES     neighbouring threads that share a channel, a power of two, at most 32: forwards its time, backwards its
//             states
//   TWINS     channels that a thread works on; backwards 1
//   THREADS   of a block: it has THREADS / LANES * TWINS channels, all of one group
//   BLOCKS    that a multiprocessor has registers for
//   ACROSS    1 where channels lie together in memory and are moved four at once, 0 where steps do
//   CONST_B, CONST_C   1 where the matrix is (D, N), constant in time
// Steps behind the end and channels behind the last have step size 0 and input 0, which leave a state exactly as it was.

#define WINDOW 32  // steps between kept states, and that the backward pass stages at once
#define TEAMS (THREADS / LANES)
#define CHANNELS (TEAMS * TWINS)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

typedef long long i64;

struct View {  // (rows, channels, steps); strides in elements
    char* data;
    i64 row, channel, step;
    i64 together;  // whether four elements, of channels with ACROSS, else of steps, can be moved at once
};

struct Matrix {  // (rows, groups, states, steps), or (channels, states) with `group` as the stride of channels
    char* data;
    i64 row, group, state, step;
    i64 together;  // four elements can be moved at once: 1 of steps, 2 of states, 0 of neither
};

struct Problem {
    View u, delta, z, out, dout, du, ddelta, dz;
    Matrix B, C, grad_B, grad_C;
    const float *A, *D, *bias;         // (D, N), (D,), (D,)
    const float *initial, *dlast;      // (B, D, N): what flows in at the beginning, and from the end backwards
    float *last, *dinitial;            // (B, D, N)
    float* kept;                       // (B, windows - 1, D, N), the state before every window but the first
    float *ends, *sums;                // (B, S, D, N), (B, S, D): see cuda_segments.cuh
    float *dA, *dD, *dbias;            // (B, S, D, N), (B, S, D), (B, S, D)
    float *dB, *dC;                    // (parts, B, G, end - begin, N); constant ones (B, S, D, N)
    float *into_A, *into_D, *into_bias, *into_B, *into_C;  // sums of these; the last two where they are constant
    i64 rows, channels, length, groups, states;
    i64 begin, end, segment, segments; // steps of this launch, steps per segment, how many
    i64 parts;                         // blocks of channels per group
    i64 softplus, reverse, more;       // more: add to what lies in into_* already
};

#ifdef EMULATED
#define SCAN_KERNEL(blocks) extern "C" __global__ void
#define SHARED_MEMORY(name) float* name = emulated_shared
#define UNROLL
#define UNROLL4
#else
#define SCAN_KERNEL(blocks) extern "C" __global__ __launch_bounds__(THREADS, blocks) void
#define SHARED_MEMORY(name) extern __shared__ __align__(16) float name[]
#define UNROLL _Pragma("unroll")
#define UNROLL4 _Pragma("unroll 4")
#endif
#define FULL_WARP 0xffffffffu

// ---- numbers

__device__ __forceinline__ float exp2_fast(float x) {
#ifdef EMULATED
    return emulated_exp2(x);
#else
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

// Numbers that the compiler knows nothing of: it neither computes them again nor, beforehand, what follows from them.
__device__ __forceinline__ float opaque(float x) {
#ifndef EMULATED
    asm volatile("" : "+f"(x));
#endif
    return x;
}

__device__ __forceinline__ int opaque(int x) {
#ifndef EMULATED
    asm volatile("" : "+r"(x));
#endif
    return x;
}

__device__ __forceinline__ float reciprocal(float x) {
#ifdef EMULATED
    return 1.0f / x;
#else
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
#endif
}

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.0f + exp2_fast(-LOG2E * x)); }

// log(1 + exp x) = max(x, 0) + log1p(e) with e = exp(-|x|), and log1p(e) = 2 artanh(e / (2 + e)), whose argument is
// at most 1/3: five terms of its series, fitted, are good to 8e-9. Exactly 0 at -infinity; NaN stays NaN.
__device__ __forceinline__ float softplus(float x) {
    float e = exp2_fast(-LOG2E * fabsf(x));
    float s = e * reciprocal(2.0f + e), q = s * s;
    float p = fmaf(q, fmaf(q, fmaf(q, fmaf(q, 0.28174657f, 0.27961418f), 0.40024853f), 0.66666317f), 2.0f);
    return fmaf(s, p, fmaxf(x, 0.0f));
}

#if DTYPE == 0
#define SIZE 4
__device__ __forceinline__ float widen(unsigned bits) { return __int_as_float((int)bits); }
__device__ __forceinline__ unsigned narrow(float x) { return (unsigned)__float_as_int(x); }
#else
#define SIZE 2
__device__ __forceinline__ float widen(unsigned bits) {
#if DTYPE == 2
    return __int_as_float((int)(bits << 16));
#elif defined(EMULATED)
    return emulated_half(bits);
#else
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"((unsigned short)bits));
    return x;
#endif
}
__device__ __forceinline__ unsigned narrow(float x) {
#ifdef EMULATED
    return emulated_narrow(x, DTYPE);
#else
    unsigned short bits;
#if DTYPE == 2
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#endif
    return bits;
#endif
}
#endif

// ---- memory

struct Raw {  // four elements as they lie in memory
    unsigned word[SIZE];
};

__device__ __forceinline__ unsigned bits_of(const char* data, i64 offset) {
#if SIZE == 4
    return ((const unsigned*)data)[offset];
#elif defined(EMULATED)
    return ((const unsigned short*)data)[offset];
#else
    unsigned short bits;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(bits) : "l"(data + offset * 2));
    return bits;
#endif
}

__device__ __forceinline__ float load(const char* data, i64 offset) { return widen(bits_of(data, offset)); }

__device__ __forceinline__ Raw load4(const char* from) {  // aligned to four elements
    Raw raw;
#ifdef EMULATED
    emulated_aligned(from, 4 * SIZE);
    for (int k = 0; k < SIZE; ++k) raw.word[k] = ((const unsigned*)from)[k];
#elif SIZE == 4
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(raw.word[0]), "=r"(raw.word[1]), "=r"(raw.word[2]), "=r"(raw.word[3])
        : "l"(from));
#else
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(raw.word[0]), "=r"(raw.word[1]) : "l"(from));
#endif
    return raw;
}

// Element k of four; as bits, and put there.
__device__ __forceinline__ unsigned element(const Raw& raw, int k) {
    return SIZE == 4 ? raw.word[k % SIZE] : k % 2 ? raw.word[k / 2 % SIZE] >> 16 : raw.word[k / 2 % SIZE] & 0xffffu;
}

__device__ __forceinline__ void put(Raw& raw, int k, unsigned bits) {
    if (SIZE == 4) raw.word[k % SIZE] = bits;
    else if (k % 2 == 0) raw.word[k / 2 % SIZE] = bits;
    else raw.word[k / 2 % SIZE] |= bits << 16;
}

__device__ __forceinline__ void unpack(const Raw& raw, float* x) {
    UNROLL for (int k = 0; k < 4; ++k) x[k] = widen(element(raw, k));
}

__device__ __forceinline__ Raw pack(const float* x) {
    Raw raw;
    UNROLL for (int k = 0; k < 4; ++k) put(raw, k, narrow(x[k]));
    return raw;
}

__device__ __forceinline__ void store4(char* to, const Raw& raw) {  // aligned to four elements
#ifdef EMULATED
    emulated_aligned(to, 4 * SIZE);
#endif
#if SIZE == 4
    *(uint4*)to = make_uint4(raw.word[0], raw.word[1], raw.word[2], raw.word[3]);
#else
    *(uint2*)to = make_uint2(raw.word[0], raw.word[1]);
#endif
}

// Has what lies there brought nearer, for a later read.
__device__ __forceinline__ void expect(const void* there) {
#ifndef EMULATED
    asm volatile("prefetch.global.L2 [%0];" ::"l"(there));
#endif
}

__device__ __forceinline__ void store_bits(char* data, i64 offset, unsigned bits) {
#if SIZE == 4
    ((unsigned*)data)[offset] = bits;
#else
    ((unsigned short*)data)[offset] = (unsigned short)bits;
#endif
}

// In shared memory.
__device__ __forceinline__ Raw shared4(const char* from) {
    Raw raw;
#if SIZE == 4
    uint4 v = *(const uint4*)from;
    raw.word[0] = v.x, raw.word[1] = v.y, raw.word[2] = v.z, raw.word[3] = v.w;
#else
    uint2 v = *(const uint2*)from;
    raw.word[0] = v.x, raw.word[1] = v.y;
#endif
    return raw;
}

__device__ __forceinline__ unsigned shared_bits(const char* tile, int i) {
    return SIZE == 4 ? ((const unsigned*)tile)[i] : ((const unsigned short*)tile)[i];
}

__device__ __forceinline__ void four(const float* tile, float* x) {
    float4 v = *(const float4*)tile;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

// ---- where a block and a thread are

struct Place {
    int row, segment, group, part;  // of the block
    int first;                      // its first channel
    int live;                       // how many channels it has
    i64 begin, end;                 // its steps
    int channel, lane;              // of the thread: channel within the block, lane within the channel
};

__device__ __forceinline__ Place place(const Problem& p) {
    Place at;
    int block = blockIdx.x, per_group = (int)p.channels / (int)p.groups;
    at.part = block % (int)p.parts, block /= (int)p.parts;
    at.group = block % (int)p.groups, block /= (int)p.groups;
    at.segment = block % (int)p.segments, at.row = block / (int)p.segments;
    int left = per_group - at.part * CHANNELS;
    at.first = at.group * per_group + at.part * CHANNELS;
    at.live = left < CHANNELS ? left : CHANNELS;
    at.begin = p.begin + at.segment * p.segment;
    at.end = at.begin + p.segment < p.end ? at.begin + p.segment : p.end;
    at.channel = threadIdx.x / LANES, at.lane = threadIdx.x % LANES;
    return at;
}

// Where a channel of the block is in a (rows, S, channels) or (rows, channels) array.
__device__ __forceinline__ i64 by_segment(const Problem& p, const Place& at, int channel) {
    return (at.row * p.segments + at.segment) * p.channels + at.first + channel;
}

__device__ __forceinline__ i64 by_row(const Problem& p, const Place& at, int channel) {
    return at.row * p.channels + at.first + channel;
}
