// Sums over the lanes of a warp.

#define LOG2(x) ((x) >= 32 ? 5 : (x) >= 16 ? 4 : (x) >= 8 ? 3 : (x) >= 4 ? 2 : (x) >= 2 ? 1 : 0)

// x[0..COUNT) over lanes that differ in the bit `mask`: a lane keeps one half, and says by how far it lies behind.
template <int COUNT>
__device__ __forceinline__ int halve(float* x, int mask) {
    bool second = (threadIdx.x & mask) != 0;
    UNROLL for (int i = 0; i < COUNT / 2; ++i) {
        float give = second ? x[i] : x[i + COUNT / 2], keep = second ? x[i + COUNT / 2] : x[i];
        x[i] = keep + __shfl_xor_sync(FULL_WARP, give, mask);
    }
    return second ? COUNT / 2 : 0;
}

template <int COUNT, int MASK, int TIMES>
struct Halve {
    static __device__ __forceinline__ int run(float* x) {
        int offset = halve<COUNT>(x, MASK);
        return offset + Halve<COUNT / 2, MASK * 2, TIMES - 1>::run(x);
    }
};
template <int COUNT, int MASK>
struct Halve<COUNT, MASK, 0> {
    static __device__ __forceinline__ int run(float*) { return 0; }
};

// x[0..STEPS * EACH), of each step EACH values, summed over a channel's lanes. Each of the first OWNERS lanes is left with
// those of STEPS / OWNERS steps, of which the number of the first is returned.
#define OWNERS(steps) (LANES < (steps) ? LANES : (steps))
template <int STEPS, int EACH>
__device__ __forceinline__ int share_steps(float* x) {
    const int owners = OWNERS(STEPS);
    int first = Halve<EACH * STEPS, 1, LOG2(owners)>::run(x) / EACH;
    UNROLL for (int mask = owners; mask < LANES; mask *= 2) {
        UNROLL for (int i = 0; i < EACH * STEPS / owners; ++i) x[i] += __shfl_xor_sync(FULL_WARP, x[i], mask);
    }
    return first;
}

// The sum over a channel's lanes, in every one of them.
__device__ __forceinline__ float over_lanes(float x) {
    UNROLL for (int mask = 1; mask < LANES; mask *= 2) x += __shfl_xor_sync(FULL_WARP, x, mask);
    return x;
}
