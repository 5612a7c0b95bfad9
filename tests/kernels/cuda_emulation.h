// CUDA's threads on one CPU thread, for tests: the threads of a block are fibers that run one after the other, in either
// order, each until it waits for its warp or its block. What a missing barrier breaks depends on that order.
#pragma once
#include <csetjmp>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
struct Index { unsigned x; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
inline float emulated_exp2(float x) { return exp2f(x); }
inline float emulated_half(unsigned bits) {
    unsigned short low = (unsigned short)bits;
    _Float16 x;
    memcpy(&x, &low, 2);
    return (float)x;
}
inline unsigned emulated_narrow(float x, int dtype) {
    unsigned bits = (unsigned)__float_as_int(x);
    if (dtype == 2) return x != x ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
    _Float16 half = (_Float16)x;
    unsigned short low;
    memcpy(&low, &half, 2);
    return low;
}

static bool misaligned;  // a GPU refuses what it moves at once from or to an address that is not a multiple of its size
inline void emulated_aligned(const void* address, size_t bytes) { misaligned |= (size_t)address % bytes != 0; }

enum Wait { READY, AT_WARP, AT_BLOCK, DONE };
struct Fiber {
    jmp_buf here;
    Wait wait;
    float slot[2];
    unsigned exchanges;
    std::vector<char> stack;
};
static Fiber fibers[THREADS];
static jmp_buf scheduler;
static Index threadIdx, blockIdx;
static float* emulated_shared;

static void wait_for(Wait what) {
    Fiber& me = fibers[threadIdx.x];
    me.wait = what;
    if (_setjmp(me.here) == 0) _longjmp(scheduler, 1);
}
static inline void __syncthreads() { wait_for(AT_BLOCK); }
static inline void __syncwarp() { wait_for(AT_WARP); }
static inline float exchange(float x, unsigned from) {
    Fiber& me = fibers[threadIdx.x];
    unsigned turn = me.exchanges++ % 2;
    me.slot[turn] = x;
    wait_for(AT_WARP);
    return fibers[from].slot[turn];
}
static inline float __shfl_xor_sync(unsigned, float x, int mask) { return exchange(x, threadIdx.x ^ (unsigned)mask); }
static inline float __shfl_up_sync(unsigned, float x, unsigned hop, unsigned width) {
    return exchange(x, threadIdx.x % width >= hop ? threadIdx.x - hop : threadIdx.x);
}
static inline float __shfl_sync(unsigned, float x, unsigned lane, unsigned width) {
    return exchange(x, threadIdx.x / width * width + lane % width);
}

struct Problem;
typedef void (*Kernel)(const Problem);
static void call(Kernel kernel, const Problem* problem);  // below the kernels, where Problem is known
static Kernel the_kernel;
static const Problem* the_problem;
static ucontext_t birth, parent;

static void body() {
    call(the_kernel, the_problem);
    fibers[threadIdx.x].wait = DONE;
    _longjmp(scheduler, 1);
}

static void resume(unsigned thread, bool fresh) {
    threadIdx.x = thread;
    if (_setjmp(scheduler) != 0) return;
    Fiber& fiber = fibers[thread];
    if (!fresh) _longjmp(fiber.here, 1);
    fiber.stack.resize(1 << 17);
    fiber.wait = READY, fiber.exchanges = 0;
    getcontext(&birth);
    birth.uc_stack.ss_sp = fiber.stack.data(), birth.uc_stack.ss_size = fiber.stack.size();
    birth.uc_link = &parent;
    makecontext(&birth, body, 0);
    setcontext(&birth);
}

// Runs a warp until all its threads wait for the block or are done. False if only some of them came to a meeting.
static bool run_warp(unsigned first, bool backwards, bool fresh) {
    for (;;) {
        unsigned at_warp = 0;
        for (unsigned k = 0; k < 32; ++k) {
            unsigned thread = first + (backwards ? 31 - k : k);
            if (fresh || fibers[thread].wait == READY) resume(thread, fresh);
        }
        fresh = false;
        for (unsigned k = 0; k < 32; ++k) at_warp += fibers[first + k].wait == AT_WARP;
        if (at_warp == 0) return true;
        if (at_warp != 32) return false;
        for (unsigned k = 0; k < 32; ++k) fibers[first + k].wait = READY;
    }
}

static bool run_block(bool backwards) {
    for (bool fresh = true;; fresh = false) {
        unsigned warps = THREADS / 32, waiting = 0, done = 0;
        for (unsigned w = 0; w < warps; ++w)
            if (!run_warp(32 * (backwards ? warps - 1 - w : w), backwards, fresh)) return false;
        for (Fiber& fiber : fibers) waiting += fiber.wait == AT_BLOCK, done += fiber.wait == DONE;
        if (done == THREADS) return true;
        if (waiting != THREADS) return false;
        for (Fiber& fiber : fibers) fiber.wait = READY;
    }
}

// 0 if all went well, 1 if threads did not meet at a barrier, 2 if a block wrote behind its shared memory, 3 if it moved
// several numbers at once at an address that does not allow it.
extern "C" int emulate(Kernel kernel, const Problem* problem, long blocks, long shared_bytes, int backwards) {
    const int guards = 64;
    long floats = shared_bytes / 4;
    std::vector<float> memory(floats + guards + 4);
    emulated_shared = (float*)(((size_t)memory.data() + 15) / 16 * 16);
    the_kernel = kernel, the_problem = problem, misaligned = false;
    for (long k = 0; k < blocks; ++k) {
        blockIdx.x = (unsigned)(backwards ? blocks - 1 - k : k);
        for (long i = 0; i < floats; ++i) emulated_shared[i] = NAN;
        for (long i = floats; i < floats + guards; ++i) emulated_shared[i] = 12345.0f;
        if (!run_block(backwards != 0)) return 1;
        for (long i = floats; i < floats + guards; ++i)
            if (emulated_shared[i] != 12345.0f) return 2;
    }
    return misaligned ? 3 : 0;
}
