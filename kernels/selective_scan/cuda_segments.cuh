// A long time is cut into segments that run side by side. A segment's end state is its end state from zero plus its
// start state times exp(A sum of steps); so every segment is first run from zero (scan_ends), then the start states
// follow one from the other (scan_join), and the pass proper starts from those. Backwards in time likewise.

#if BACKWARD
struct EndTiles {
    float *dt, *g;  // (CHANNELS, WINDOW), see `spot`
    float *c;       // (WINDOW, PADDED + 4)
};

__device__ __forceinline__ EndTiles end_tiles(float* memory) {
    EndTiles t = {memory, memory + CHANNELS * WINDOW, memory + 2 * CHANNELS * WINDOW};
    return t;
}

__device__ __forceinline__ void stage_end(const Problem& p, const EndTiles& tile, const Place& at, const Span& s) {
    Raw delta[OF_TILE], dout[OF_TILE], z[OF_TILE];
    fetch_view(p.delta, at, s, delta), fetch_view(p.dout, at, s, dout), fetch_view(p.z, at, s, z);
    __syncthreads();  // what is overwritten now has been read
    if (!CONST_C) stage_matrix<1, PADDED + 4>(p.C, at, s, tile.c);
    stage_steps(p, at, s, delta, tile.dt, 0);
    stage_gradient(p, dout, z, tile.g);
    __syncthreads();
}

// The recurrence R_{t-1} = a_t (C_t g_t + R_t) with g = dout silu(z), from zero at a segment's end to its beginning:
// ends (B, S, D, N), and sums (B, S, D), of step sizes.
SCAN_KERNEL(BLOCKS) scan_ends_reverse(const Problem p) {
    SHARED_MEMORY(memory);
    EndTiles tile = end_tiles(memory);
    Place at = place(p);
    float flow[NS], a2[NS], c[NS], sum = 0.0f;
    load_states(p.A, at.first + at.channel, at, 0, a2);
    if (CONST_C) load_constant(p.C, at, 0, c);
    UNROLL for (int j = 0; j < NS; ++j) flow[j] = 0.0f, a2[j] *= LOG2E;
    i64 windows = (at.end - at.begin + WINDOW - 1) / WINDOW;
    for (i64 w = windows - 1; w >= 0; --w) {
        stage_end(p, tile, at, span(at, at.begin + w * WINDOW, WINDOW));
        _Pragma("unroll 1") for (int first = WINDOW - 4; first >= 0; first -= 4) {
            float dts[4], gs[4];
            steps_of<4>(tile.dt, at, first, dts), steps_of<4>(tile.g, at, first, gs);
            UNROLL for (int i = 3; i >= 0; --i) {
                if (!CONST_C) read_share(tile.c + (first + i) * (PADDED + 4) + at.lane * NS, c);
                sum += dts[i];
                UNROLL for (int j = 0; j < NS; ++j) flow[j] = exp2_fast(dts[i] * a2[j]) * fmaf(gs[i], c[j], flow[j]);
            }
        }
    }
    store_states(p.ends, by_segment(p, at, at.channel), at, 0, flow);
    if (at.channel < at.live && at.lane == 0) p.sums[by_segment(p, at, at.channel)] = sum;
}
#endif

// One thread per row, channel and state: ends becomes what flows into each segment.
SCAN_KERNEL(1) scan_join(const Problem p) {
    i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, per_row = p.channels * STATES;
    if (i >= p.rows * per_row) return;
    i64 row = i / per_row, channel = i % per_row / STATES;
    const float* from = p.reverse ? p.dlast : p.initial;
    float a2 = p.A[i % per_row] * LOG2E, flow = from != 0 ? from[i] : 0.0f;
    for (i64 k = 0; k < p.segments; ++k) {
        i64 s = row * p.segments + (p.reverse ? p.segments - 1 - k : k);
        float* end = p.ends + s * per_row + i % per_row;
        float local = *end;
        *end = flow;
        flow = fmaf(exp2_fast(a2 * p.sums[s * p.channels + channel]), flow, local);
    }
}
