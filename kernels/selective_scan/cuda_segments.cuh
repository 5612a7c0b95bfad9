// A long time is cut into segments that run side by side. A segment's end state is its end state from zero plus its
// start state times exp(A sum of steps); so every segment is first run from zero (scan_ends), then the start states
// follow one from the other (scan_join), and the pass proper starts from those. Backwards in time likewise.

// g = dout silu(z).
__device__ __forceinline__ void read_gradient(const Problem& p, const Place& at, const Span& s, float* tile) {
    read_plain(p.dout, at, s, tile);
    if (p.z.data == 0) return;
    __syncthreads();
    read_tile(p.z, at, s, tile, [](float* to, float z, int, bool there) { *to = there ? *to * z * sigmoid(z) : 0.0f; });
}

// From zero: ends (B, S, D, N) = the end states, sums (B, S, D) = the sums of steps. With p.reverse, backwards: of the
// recurrence R_{t-1} = a_t (C_t g_t + R_t) with g = dout silu(z), from the segment's end to its beginning.
template <bool REVERSE>
__device__ __forceinline__ void ends_of_segment(const Problem& p, const Place& at, const Tiles& tile) {
    const Matrix& matrix = REVERSE ? p.C : p.B;
    const bool constant = REVERSE ? CONST_C : CONST_B;
    float h[NS], a2[NS], m[NS], sum = 0.0f;
    load_states(p.A, at.first + at.channel, at, 0, a2);
    if (constant) load_constant(matrix, at, 0, m);
    UNROLL for (int j = 0; j < NS; ++j) h[j] = 0.0f, a2[j] *= LOG2E;
    float *dts = tile.dt + at.channel * ROW, *us = tile.u + at.channel * ROW;
    const float* ms = tile.b + at.lane * NS;
    i64 windows = (at.end - at.begin + WINDOW - 1) / WINDOW;
    for (i64 w = 0; w < windows; ++w) {
        Span s = span(at, at.begin + (REVERSE ? windows - 1 - w : w) * WINDOW);
        read_steps<false>(p, at, s, tile.dt, 0);
        if (REVERSE) read_gradient(p, at, s, tile.u);
        else read_plain(p.u, at, s, tile.u);
        if (!constant) read_matrix<1, 0, MATRIX_PITCH>(matrix, at, s, tile.b);
        __syncthreads();
        UNROLL4 for (int i = 0; i < WINDOW; ++i) {
            int t = REVERSE ? WINDOW - 1 - i : i;
            float dt = dts[t], u = us[t], x = REVERSE ? u : dt * u;
            if (!constant) read_share(ms + t * MATRIX_PITCH, m);
            sum += dt;
            UNROLL for (int j = 0; j < NS; ++j) {
                float a = exp2_fast(dt * a2[j]);
                h[j] = REVERSE ? a * fmaf(x, m[j], h[j]) : fmaf(x, m[j], a * h[j]);
            }
        }
        __syncthreads();
    }
    store_states(p.ends, by_segment(p, at), at, 0, h);
    if (at.channel < at.live && at.lane == 0) p.sums[by_segment(p, at)] = sum;
}

#if !BACKWARD
SCAN_KERNEL(ENDS_BLOCKS) scan_ends(const Problem p) {
    SHARED_MEMORY(memory);
    ends_of_segment<false>(p, place(p), tiles(memory));
}
#else
SCAN_KERNEL(ENDS_BLOCKS) scan_ends_reverse(const Problem p) {
    SHARED_MEMORY(memory);
    ends_of_segment<true>(p, place(p), tiles(memory));
}
#endif

// One thread per row, channel and state: ends becomes what flows into each segment.
SCAN_KERNEL(MANY_BLOCKS) scan_join(const Problem p) {
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
