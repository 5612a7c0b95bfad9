// What the kernels of the selective scan on the GPU share. No header is needed, so that NVRTC, nvcc and (for the tests,
// with EMULATED) g++ take the same text.
//
// One specialisation is made by these macros:
//   DTYPE     of u, delta, z, B, C, out and their gradients: 0 float32, 1 float16, 2 bfloat16
//   STATES    N
//   LANES     neighbouring threads that share a channel's states; a power of two, at most 32
//   BACKWARD  1 for the kernels of the backward pass
//   THREADS   of a block: it has THREADS / LANES channels, all of one group
//   BLOCKS    that a multiprocessor has registers for, of the kernel scan_backward
//   CONST_B, CONST_C   1 where the matrix is (D, N), constant in time
// A thread keeps NS states of one channel in registers and goes through time; time comes in windows of WINDOW steps,
// staged through shared memory. Steps behind the end and channels behind the last have step size 0 and input 0, which
// leave a state exactly as it was.

#define MANY_BLOCKS (512 / THREADS)  // of kernels that 128 registers are enough for
#define ENDS_BLOCKS ((NS > 4 ? 384 : 512) / THREADS)  // of those that find the ends of segments: 168, or 128
#define WINDOW 32
#define ROW (WINDOW + 1)  // odd, so that neither time nor channels meet in one bank of shared memory
#define CHANNELS (THREADS / LANES)
#define SHARE ((STATES + LANES - 1) / LANES)
#define NS ((SHARE + 3) / 4 * 4)  // states of a thread; the last ones may be padding, which stays 0
#define PADDED (NS * LANES)
#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

typedef long long i64;

struct View {  // (rows, channels, steps); strides in elements
    char* data;
    i64 row, channel, step;
    i64 mode;  // see cuda_tiles.cuh
};

struct Matrix {  // (rows, groups, states, steps), or (channels, states) with `group` as the stride of channels
    const char* data;
    i64 row, group, state, step;
};

struct Problem {
    View u, delta, z, out, dout, du, ddelta, dz;
    Matrix B, C;
    const float *A, *D, *bias;         // (D, N), (D,), (D,)
    const float *initial, *dlast;      // (B, D, N): what flows in at the beginning, and from the end backwards
    float *last, *dinitial;            // (B, D, N)
    float* kept;                       // (B, windows - 1, D, N), the state before every window but the first
    float *ends, *sums;                // (B, S, D, N), (B, S, D): see cuda_segments.cuh
    float *dA, *dD, *dbias;            // (B, S, D, N), (B, S, D), (B, S, D)
    float *dB, *dC;                    // (parts, B, G, end - begin, N); constant ones (B, S, D, N)
    i64 rows, channels, length, groups, states;
    i64 begin, end, segment, segments; // steps of this launch, steps per segment, how many
    i64 parts;                         // blocks of channels per group
    i64 softplus, reverse;
};

#ifdef EMULATED
#define SCAN_KERNEL(blocks) extern "C" __global__ void
#define SHARED_MEMORY(name) float* name = emulated_shared
#define UNROLL
#define UNROLL4
#define UNROLL_TIMES
#else
#define SCAN_KERNEL(blocks) extern "C" __global__ __launch_bounds__(THREADS, blocks) void
#define SHARED_MEMORY(name) extern __shared__ __align__(16) float name[]
#define UNROLL _Pragma("unroll")
#define UNROLL4 _Pragma("unroll 4")
#define UNROLL_TIMES _Pragma("unroll times")  // so many times as a constant of that name says
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

__device__ __forceinline__ float load(const char* data, i64 offset) {
#if SIZE == 4
    return ((const float*)data)[offset];
#elif defined(EMULATED)
    return widen(((const unsigned short*)data)[offset]);
#else
    unsigned short bits;
    asm("ld.global.nc.u16 %0, [%1];" : "=h"(bits) : "l"(data + offset * 2));
    return widen(bits);
#endif
}

__device__ __forceinline__ void store(char* data, i64 offset, float x) {
#if SIZE == 4
    ((float*)data)[offset] = x;
#else
    ((unsigned short*)data)[offset] = (unsigned short)narrow(x);
#endif
}

__device__ __forceinline__ void load4(const char* data, i64 offset, float* x) {  // aligned to four elements
#ifdef EMULATED
    emulated_aligned(data + offset * SIZE, 4 * SIZE);
    for (int k = 0; k < 4; ++k) x[k] = load(data, offset + k);
#elif SIZE == 4
    asm("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
        : "=f"(x[0]), "=f"(x[1]), "=f"(x[2]), "=f"(x[3])
        : "l"(data + offset * 4));
#else
    unsigned low, high;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(low), "=r"(high) : "l"(data + offset * 2));
    x[0] = widen(low & 0xffffu), x[1] = widen(low >> 16), x[2] = widen(high & 0xffffu), x[3] = widen(high >> 16);
#endif
}

__device__ __forceinline__ void store4(char* data, i64 offset, const float* x) {
#ifdef EMULATED
    emulated_aligned(data + offset * SIZE, 4 * SIZE);
    for (int k = 0; k < 4; ++k) store(data, offset + k, x[k]);
#elif SIZE == 4
    *(float4*)(data + offset * 4) = make_float4(x[0], x[1], x[2], x[3]);
#else
    *(uint2*)(data + offset * 2) = make_uint2(narrow(x[0]) | narrow(x[1]) << 16, narrow(x[2]) | narrow(x[3]) << 16);
#endif
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

// Element `first channel, 0` of the block in a (rows, S, channels) or (rows, channels) array of the problem.
__device__ __forceinline__ i64 by_segment(const Problem& p, const Place& at) {
    return (at.row * p.segments + at.segment) * p.channels + at.first + at.channel;
}

__device__ __forceinline__ i64 by_row(const Problem& p, const Place& at) {
    return at.row * p.channels + at.first + at.channel;
}

// A thread's states, of which number j is state `lane * NS + (j ^ turn)` of its channel, from and to (..., N).
__device__ __forceinline__ void load_states(const float* from, i64 channel, const Place& at, int turn, float* x) {
    UNROLL for (int j = 0; j < NS; ++j) {
        int n = at.lane * NS + (j ^ turn);
        x[j] = from != 0 && at.channel < at.live && n < STATES ? from[channel * STATES + n] : 0.0f;
    }
}

__device__ __forceinline__ void store_states(float* to, i64 channel, const Place& at, int turn, const float* x) {
    if (at.channel >= at.live) return;
    UNROLL for (int j = 0; j < NS; ++j) {
        int n = at.lane * NS + (j ^ turn);
        if (n < STATES) to[channel * STATES + n] = x[j];
    }
}

// A constant matrix's states of the thread's channel.
__device__ __forceinline__ void load_constant(const Matrix& m, const Place& at, int turn, float* x) {
    UNROLL for (int j = 0; j < NS; ++j) {
        int n = at.lane * NS + (j ^ turn);
        i64 offset = (at.first + at.channel) * m.group + n * m.state;
        x[j] = at.channel < at.live && n < STATES ? load(m.data, offset) : 0.0f;
    }
}
