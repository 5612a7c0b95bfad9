// How the states of channels lie in a warp in the backward pass, and sums over its lanes.

#define SHARE ((STATES + LANES - 1) / LANES)
#define NS ((SHARE + 3) / 4 * 4)  // states of a thread; the last ones may be padding, which stays 0
#define PADDED (NS * LANES)
#define WARP_CHANNELS (32 / LANES)

// The lanes of neighbouring channels turn their states (see load_states), so that the first exchanges need no choice:
// every lane keeps the slots without bit 1 (then 0) and gives away those with it.
#define TURNS (WARP_CHANNELS >= 4 ? 2 : WARP_CHANNELS >= 2 ? 1 : 0)
#define TURN_OF(channel) (TURNS == 2 ? ((channel) & 1) * 2 + ((channel) >> 1 & 1) : TURNS == 1 ? ((channel) & 1) * 2 : 0)
#define COPIES (1 << TURNS)  // of the matrices' tiles, one for each way of turning; a channel's is `channel % COPIES`
#define COPY_PITCH (COPIES * PADDED + 4)

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
