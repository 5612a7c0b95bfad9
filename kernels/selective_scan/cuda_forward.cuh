// The forward pass: a thread goes through the steps of one segment with NS states of one channel in registers.

#define AT_ONCE (NS > 4 ? 4 : LANES < 16 ? 8 : 16)  // steps whose y are shared out among the lanes together
#define MATRIX_PITCH (PADDED + 4)  // floats per step of a matrix's tile: aligned to four, spread over the banks

struct Tiles {
    float *dt, *u, *b, *c;
};

__device__ __forceinline__ Tiles tiles(float* memory) {
    Tiles t;
    t.dt = memory, t.u = t.dt + CHANNELS * ROW;
    t.b = memory + (2 * CHANNELS * ROW + 3) / 4 * 4, t.c = t.b + WINDOW * MATRIX_PITCH;
    return t;
}

// The states that a thread starts its segment with, and its A times log2(e).
__device__ __forceinline__ void begin_states(const Problem& p, const Place& at, float* h, float* a2) {
    if (at.segment == 0) load_states(p.initial, by_row(p, at), at, 0, h);
    else load_states(p.ends, by_segment(p, at), at, 0, h);
    load_states(p.A, at.first + at.channel, at, 0, a2);
    UNROLL for (int j = 0; j < NS; ++j) a2[j] *= LOG2E;
}

#if !BACKWARD
// One window of staged steps. Leaves y, without the gate, in place of u. skip: D, in one lane of a channel only.
__device__ __forceinline__ void walk(const Tiles& tile, const Place& at, float skip, const float* a2,
                                     const float* constant_b, const float* constant_c, float* h) {
    float *dts = tile.dt + at.channel * ROW, *us = tile.u + at.channel * ROW;
    const float *bs = tile.b + at.lane * NS, *cs = tile.c + at.lane * NS;
    _Pragma("unroll 1") for (int start = 0; start < WINDOW; start += AT_ONCE) {
        float ys[AT_ONCE];
        UNROLL for (int i = 0; i < AT_ONCE; ++i) {
            int t = start + i;
            float dt = dts[t], u = us[t], x = dt * u, y = skip * u, b[NS], c[NS];
            if (!CONST_B) read_share(bs + t * MATRIX_PITCH, b);
            if (!CONST_C) read_share(cs + t * MATRIX_PITCH, c);
            UNROLL for (int j = 0; j < NS; ++j) {
                h[j] = fmaf(x, CONST_B ? constant_b[j] : b[j], exp2_fast(dt * a2[j]) * h[j]);
                y = fmaf(CONST_C ? constant_c[j] : c[j], h[j], y);
            }
            ys[i] = y;
        }
        int first = start + share_steps<AT_ONCE, 1>(ys);
        __syncwarp();  // the other lanes have read what is overwritten now
        if (at.lane < OWNERS(AT_ONCE)) {
            UNROLL for (int i = 0; i < AT_ONCE / OWNERS(AT_ONCE); ++i) us[first + i] = ys[i];
        }
    }
}

__device__ __forceinline__ void write_out(const Problem& p, const Place& at, const Span& s, float* tile) {
    if (p.z.data != 0) {
        read_tile(p.z, at, s, tile, [](float* to, float z, int, bool) { *to *= z * sigmoid(z); });
        __syncthreads();
    }
    write_tile(p.out, at, s, tile);
}

SCAN_KERNEL(MANY_BLOCKS) scan_forward(const Problem p) {
    SHARED_MEMORY(memory);
    Tiles tile = tiles(memory);
    Place at = place(p);
    float h[NS], a2[NS], constant_b[NS], constant_c[NS];
    begin_states(p, at, h, a2);
    if (CONST_B) load_constant(p.B, at, 0, constant_b);
    if (CONST_C) load_constant(p.C, at, 0, constant_c);
    float skip = p.D != 0 && at.channel < at.live && at.lane == 0 ? p.D[at.first + at.channel] : 0.0f;
    i64 windows = (p.length - 1) / WINDOW;
    for (i64 start = at.begin; start < at.end; start += WINDOW) {
        if (p.kept != 0 && start > 0)
            store_states(p.kept, (at.row * windows + start / WINDOW - 1) * p.channels + at.first + at.channel, at, 0, h);
        Span s = span(at, start);
        read_steps<false>(p, at, s, tile.dt, 0);
        read_plain(p.u, at, s, tile.u);
        if (!CONST_B) read_matrix<1, 0, MATRIX_PITCH>(p.B, at, s, tile.b);
        if (!CONST_C) read_matrix<1, 0, MATRIX_PITCH>(p.C, at, s, tile.c);
        __syncthreads();
        walk(tile, at, skip, a2, constant_b, constant_c, h);
        __syncthreads();
        write_out(p, at, s, tile.u);
        __syncthreads();
    }
    if (at.end == p.length) store_states(p.last, by_row(p, at), at, 0, h);
}
#endif
