// The backward pass. A thread has NS states of one channel and goes backwards through the windows of its segment; so the
// gradients of B and C, sums over channels at every step, are sums over the lanes of a warp. The states of a window are computed again from the kept one: once through the window to find the state
// before every part of PART steps, then part by part, last first, with the part's states and decays in registers.
//
// With a_t = exp(dt_t A), g_t = dout_t silu(z_t) and R_t = a_{t+1} G_{t+1}, which flows in from the right:
//     G_t = C_t g_t + R_t
//     dC_t = g_t h_t     dB_t = G_t dt_t u_t     (sums over the channels of a group)
//     s1 = sum_n G_t B_t     s2 = sum_n G_t A a_t h_{t-1}     y = sum_n C_t h_t
//     du = D g + dt s1     ddelta = (s2 + u s1) slope     dz = dout (y + D u) dsilu(z)
// The sum over channels goes over the lanes of a warp by exchanging halves, over the warps through shared memory, and
// over blocks by a second sum outside: no atomics, so the same bits every time.

#if NS <= 4
#define PART 8
#elif NS <= 8
#define PART 4
#else
#define PART 2
#endif
#define PARTS (WINDOW / PART)
#define WARPS (THREADS / 32)
#define LEFT (NS >> TURNS)  // slots left after the turned exchanges, and which they are
#define SLOT(left) (TURNS == 2 ? (left) * 4 : TURNS == 1 ? (left) / 2 * 4 + (left) % 2 : (left))
#define VALUES (PART * LEFT)  // left for a part, of dC or dB
#define HALVINGS LOG2(WARP_CHANNELS >> TURNS)
#define BUFFERS (PADDED > 32 ? 1 : 2)

struct BackTiles {
    float *dt, *slope, *u, *g;  // (CHANNELS, WINDOW), see `spot`; they end as ddelta, -, du, y
    float *b, *c;               // (WINDOW, COPY_PITCH)
    float *before;              // (PARTS - 1, NS / 4, THREADS) float4: the state before each part but the last
    float *sums;                // (BUFFERS, WARPS, 2, PART, PADDED)
    float *totals;              // (OF_CHANNEL, THREADS), the thread's: its sums over all windows so far
};

#define OF_CHANNEL (NS * (1 + CONST_B + CONST_C) + 2)  // dA, dD, dbias, and of the matrices that are constant

__device__ __forceinline__ BackTiles back_tiles(float* memory) {
    BackTiles t;
    t.b = memory, t.c = t.b + (CONST_B ? 0 : WINDOW * COPY_PITCH);
    t.before = t.c + (CONST_C ? 0 : WINDOW * COPY_PITCH);
    t.sums = t.before + (PARTS - 1) * NS * THREADS;
    t.dt = t.sums + BUFFERS * WARPS * 2 * PART * PADDED;
    t.slope = t.dt + CHANNELS * WINDOW, t.u = t.slope + CHANNELS * WINDOW, t.g = t.u + CHANNELS * WINDOW;
    t.totals = t.g + CHANNELS * WINDOW + threadIdx.x;
    return t;
}

struct Thread {  // what a thread carries through its segment
    float a2[NS], flow[NS];  // A log2(e); R
    float b[NS], c[NS];      // the matrices that are constant
    float skip;
};

struct Window {  // its sums over one window
    float dA[NS], dB[NS], dC[NS], dD, dbias;
};

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

__device__ __forceinline__ void load_constant(const Matrix& m, const Place& at, int turn, float* x) {
    UNROLL for (int j = 0; j < NS; ++j) x[j] = constant(m, at, at.channel, at.lane * NS + (j ^ turn));
}

__device__ __forceinline__ void read_share(const float* tile, float* x) {
    UNROLL for (int j = 0; j < NS; j += 4) four(tile + j, x + j);
}

// The sum over neighbouring channels of x[0..NS), compacted into left[0..LEFT).
__device__ __forceinline__ void turned_exchange(float* x, float* left) {
    UNROLL for (int j = 0; j < NS; ++j)
        if (TURNS >= 1 && (j & 2) == 0) x[j] += __shfl_xor_sync(FULL_WARP, x[j ^ 2], LANES);
    UNROLL for (int j = 0; j < NS; ++j)
        if (TURNS == 2 && (j & 3) == 0) x[j] += __shfl_xor_sync(FULL_WARP, x[j ^ 1], 2 * LANES);
    UNROLL for (int m = 0; m < LEFT; ++m) left[m] = x[SLOT(m)];
}

// Steps 0.. of a part: its states after each step times g, summed over the warp's channels, into dc; y; and what the
// way back needs, decays and decayed states.
__device__ __forceinline__ void part_forwards(const BackTiles& tile, const Place& at, Thread& my, Window& sum, int first,
                                              float (*decay)[NS], float (*decayed)[NS], float* h, float* dc,
                                              float* ys) {
    float dts[PART], us[PART], gs[PART];
    steps_of<PART>(tile.dt, at, first, dts), steps_of<PART>(tile.u, at, first, us), steps_of<PART>(tile.g, at, first, gs);
    const float *bs = tile.b + at.channel % COPIES * PADDED + at.lane * NS, *cs = tile.c + (bs - tile.b);
    UNROLL for (int i = 0; i < PART; ++i) {
        float dt = dts[i], x = dt * us[i], g = gs[i], y = 0.0f, products[NS];
        if (!CONST_B) read_share(bs + (first + i) * COPY_PITCH, my.b);
        if (!CONST_C) read_share(cs + (first + i) * COPY_PITCH, my.c);
        UNROLL for (int j = 0; j < NS; ++j) {
            decay[i][j] = exp2_fast(dt * my.a2[j]);
            decayed[i][j] = decay[i][j] * h[j];
            h[j] = fmaf(x, my.b[j], decayed[i][j]);
            y = fmaf(my.c[j], h[j], y);
            products[j] = g * h[j];
            if (CONST_C) sum.dC[j] += products[j];
        }
        ys[i] = y;
        if (!CONST_C) turned_exchange(products, dc + i * LEFT);
    }
}

__device__ __forceinline__ void part_backwards(const BackTiles& tile, const Place& at, Thread& my, Window& sum, int first,
                                               float (*decay)[NS], float (*decayed)[NS], float* db,
                                               float* ss) {
    float dts[PART], us[PART], gs[PART];
    steps_of<PART>(tile.dt, at, first, dts), steps_of<PART>(tile.u, at, first, us), steps_of<PART>(tile.g, at, first, gs);
    const float *bs = tile.b + at.channel % COPIES * PADDED + at.lane * NS, *cs = tile.c + (bs - tile.b);
    UNROLL for (int i = PART - 1; i >= 0; --i) {
        float dt = dts[i], x = dt * us[i], g = gs[i], s1 = 0.0f, s2 = 0.0f, products[NS];
        if (!CONST_B) read_share(bs + (first + i) * COPY_PITCH, my.b);
        if (!CONST_C) read_share(cs + (first + i) * COPY_PITCH, my.c);
        UNROLL for (int j = 0; j < NS; ++j) {
            float G = fmaf(my.c[j], g, my.flow[j]), w = G * decayed[i][j];
            s1 = fmaf(G, my.b[j], s1);
            s2 = fmaf(w, my.a2[j], s2);
            sum.dA[j] = fmaf(w, dt, sum.dA[j]);
            products[j] = G * x;
            if (CONST_B) sum.dB[j] += products[j];
            my.flow[j] = decay[i][j] * G;
        }
        ss[i * 2] = s1, ss[i * 2 + 1] = s2 * LN2;
        if (!CONST_B) turned_exchange(products, db + i * LEFT);
    }
}

// The gradients at the steps that a lane owns, from its y and (s1, s2).
__device__ __forceinline__ void finish_steps(const BackTiles& tile, const Place& at, const Thread& my, Window& sum,
                                             int first, const float* ys, const float* ss) {
    __syncwarp();  // the others have read what is overwritten now
    if (at.lane >= OWNERS(PART)) return;
    UNROLL for (int i = 0; i < PART / OWNERS(PART); ++i) {
        int k = spot(at.channel, first + i);
        float dt = tile.dt[k], u = tile.u[k], g = tile.g[k];
        float ddelta = fmaf(u, ss[i * 2], ss[i * 2 + 1]) * tile.slope[k];
        sum.dD = fmaf(g, u, sum.dD);
        sum.dbias += ddelta;
        tile.u[k] = fmaf(my.skip, g, dt * ss[i * 2]);
        tile.dt[k] = ddelta;
        tile.g[k] = fmaf(my.skip, u, ys[i]);
    }
}

// values: (PART, LEFT) of dC or dB, summed over the warp's other channels, to this warp's sums of the block.
__device__ __forceinline__ void share_values(const Place& at, float* values, float* sums) {
    int first = Halve<VALUES, (LANES << TURNS), HALVINGS>::run(values);
    sums += at.lane * NS;
    UNROLL for (int i = 0; i < (VALUES >> HALVINGS); ++i) {
        int k = first + i;
        sums[k / LEFT * PADDED + (SLOT(k % LEFT) ^ TURN_OF(at.channel))] = values[i];
    }
}

// Where this block's sums over a window begin in (parts, B, G, end - begin, N).
__device__ __forceinline__ i64 first_sum(const Problem& p, const Place& at, const Span& s) {
    i64 row = (at.part * p.rows + at.row) * p.groups + at.group;
    return (row * (p.end - p.begin) + s.start - p.begin) * STATES;
}

// A part's dC and dB, summed over the block's warps.
__device__ __forceinline__ void write_sums(const Problem& p, const float* sums, i64 first, int steps, int part) {
    const int size = 2 * PART * PADDED;
    UNROLL4 for (int start = 0; start < size; start += THREADS) {
        int k = start + threadIdx.x, n = k % PADDED, t = part * PART + k / PADDED % PART;
        bool of_c = k < size / 2;
        if (size % THREADS != 0 && k >= size) break;
        if ((of_c ? CONST_C : CONST_B) || n >= STATES || t >= steps) continue;
        float sum = 0.0f;
        UNROLL for (int w = 0; w < WARPS; ++w) sum += sums[w * size + k];
        (of_c ? p.dC : p.dB)[first + t * STATES + n] = sum;
    }
}

// The state before every part of a window, from the one before the window; that before the last part stays in h.
__device__ __forceinline__ void states_before_parts(const BackTiles& tile, const Place& at, Thread& my, float* h) {
    float4* before = (float4*)tile.before + threadIdx.x;
    const float* bs = tile.b + at.channel % COPIES * PADDED + at.lane * NS;
    _Pragma("unroll 1") for (int part = 0; part < PARTS - 1; ++part) {
        UNROLL for (int j = 0; j < NS; j += 4)
            before[(part * (NS / 4) + j / 4) * THREADS] = make_float4(h[j], h[j + 1], h[j + 2], h[j + 3]);
        float dts[PART], us[PART];
        steps_of<PART>(tile.dt, at, part * PART, dts), steps_of<PART>(tile.u, at, part * PART, us);
        UNROLL for (int i = 0; i < PART; ++i) {
            float dt = dts[i], x = dt * us[i];
            if (!CONST_B) read_share(bs + (part * PART + i) * COPY_PITCH, my.b);
            UNROLL for (int j = 0; j < NS; ++j) h[j] = fmaf(x, my.b[j], exp2_fast(dt * my.a2[j]) * h[j]);
        }
    }
}

// Sums over a window join those over the windows before; as one sum over a long time they would round more.
__device__ __forceinline__ void add_totals(const BackTiles& tile, const Window& sum) {
    float* to = tile.totals;
    UNROLL for (int j = 0; j < NS; ++j, to += THREADS) *to += sum.dA[j];
    UNROLL for (int j = 0; CONST_B && j < NS; ++j, to += THREADS) *to += sum.dB[j];
    UNROLL for (int j = 0; CONST_C && j < NS; ++j, to += THREADS) *to += sum.dC[j];
    to[0] += sum.dD, to[THREADS] += sum.dbias;
}

// One window: tiles are staged; h is the state before it.
__device__ __forceinline__ void walk_back(const Problem& p, const BackTiles& tile, const Place& at, Thread& my,
                                          const Span& s, float* h) {
    const int size = WARPS * 2 * PART * PADDED;
    const i64 first_of_sums = first_sum(p, at, s);
    Window sum;
    UNROLL for (int j = 0; j < NS; ++j) sum.dA[j] = sum.dB[j] = sum.dC[j] = 0.0f;
    sum.dD = sum.dbias = 0.0f;
    states_before_parts(tile, at, my, h);
    _Pragma("unroll 1") for (int part = PARTS - 1; part >= 0; --part) {
        float decay[PART][NS], decayed[PART][NS], dc[VALUES], db[VALUES], ys[PART], ss[2 * PART];
        float* sums = tile.sums + part % BUFFERS * size;
        float* mine = sums + threadIdx.x / 32 * (size / WARPS);
        UNROLL for (int j = 0; part < PARTS - 1 && j < NS; j += 4)
            four(tile.before + ((part * (NS / 4) + j / 4) * THREADS + threadIdx.x) * 4, h + j);
        if (BUFFERS == 1) __syncthreads();
        part_forwards(tile, at, my, sum, part * PART, decay, decayed, h, dc, ys);
        if (!CONST_C) share_values(at, dc, mine);
        share_steps<PART, 1>(ys);
        part_backwards(tile, at, my, sum, part * PART, decay, decayed, db, ss);
        if (!CONST_B) share_values(at, db, mine + PART * PADDED);
        int first = share_steps<PART, 2>(ss);
        finish_steps(tile, at, my, sum, part * PART + first, ys, ss);
        if (!CONST_B || !CONST_C) {
            __syncthreads();
            write_sums(p, sums, first_of_sums, s.steps, part);
        }
    }
    add_totals(tile, sum);
}
