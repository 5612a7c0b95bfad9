// The backward pass. A thread has NS states of one channel, as forwards, and goes backwards through the windows of its
// segment. The states of a window are computed again from the kept one: once through the window to find the state
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
#define WARP_CHANNELS (32 / LANES)
#define WARPS (THREADS / 32)

// The lanes of neighbouring channels turn their states (see load_states), so that the first exchanges need no choice:
// every lane keeps the slots without bit 1 (then 0) and gives away those with it.
#define TURNS (WARP_CHANNELS >= 4 ? 2 : WARP_CHANNELS >= 2 ? 1 : 0)
#define TURN_OF(channel) (TURNS == 2 ? ((channel) & 1) * 2 + ((channel) >> 1 & 1) : TURNS == 1 ? ((channel) & 1) * 2 : 0)
#define COPIES (1 << TURNS)  // of the matrices' tiles, one for each way of turning
#define COPY_STEP (TURNS == 1 ? 2 : 1)
#define COPY_OF(channel) (TURN_OF(channel) / COPY_STEP)
#define COPY_PITCH (COPIES * PADDED)
#define LEFT (NS >> TURNS)  // slots left after the turned exchanges, and which they are
#define SLOT(left) (TURNS == 2 ? (left) * 4 : TURNS == 1 ? (left) / 2 * 4 + (left) % 2 : (left))
#define VALUES (PART * LEFT)  // left for a part, of dC or dB
#define HALVINGS LOG2(WARP_CHANNELS >> TURNS)
#define BUFFERS (PADDED > 32 ? 1 : 2)

struct BackTiles {
    float *dt, *slope, *u, *g;  // tiles; they end as ddelta, -, du, y
    float *b, *c;               // (WINDOW, COPIES, PADDED)
    float *before;              // (PARTS, NS / 4, THREADS) float4: the state before each part
    float *sums;                // (BUFFERS, WARPS, 2, PART, PADDED)
};

__device__ __forceinline__ BackTiles back_tiles(float* memory) {
    BackTiles t;
    t.b = memory, t.c = t.b + (CONST_B ? 0 : WINDOW * COPY_PITCH);
    t.before = t.c + (CONST_C ? 0 : WINDOW * COPY_PITCH);
    t.sums = t.before + PARTS * NS * THREADS;
    t.dt = t.sums + BUFFERS * WARPS * 2 * PART * PADDED;
    t.slope = t.dt + CHANNELS * ROW, t.u = t.slope + CHANNELS * ROW, t.g = t.u + CHANNELS * ROW;
    return t;
}

struct Thread {  // what a thread carries through its segment; sums go window by window, then over the windows
    float a2[NS], flow[NS];  // A log2(e); R
    float b[NS], c[NS];      // the matrices that are constant
    float skip;
    float dA[NS], dB[NS], dC[NS], dD, dbias;
};

struct Window {  // and its sums over one window
    float dA[NS], dB[NS], dC[NS], dD, dbias;
};

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
    int row = at.channel * ROW + first;
    const float *bs = tile.b + COPY_OF(at.channel) * PADDED + at.lane * NS, *cs = tile.c + (bs - tile.b);
    UNROLL for (int i = 0; i < PART; ++i) {
        float dt = tile.dt[row + i], x = dt * tile.u[row + i], g = tile.g[row + i], y = 0.0f, products[NS];
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
    int row = at.channel * ROW + first;
    const float *bs = tile.b + COPY_OF(at.channel) * PADDED + at.lane * NS, *cs = tile.c + (bs - tile.b);
    UNROLL for (int i = PART - 1; i >= 0; --i) {
        float dt = tile.dt[row + i], x = dt * tile.u[row + i], g = tile.g[row + i], s1 = 0.0f, s2 = 0.0f, products[NS];
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
        int k = at.channel * ROW + first + i;
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

// A part's dC and dB, summed over the block's warps.
__device__ __forceinline__ void write_sums(const Problem& p, const float* sums, const Place& at, const Span& s, int part) {
    const int size = 2 * PART * PADDED;
    for (int k = threadIdx.x; k < size; k += THREADS) {
        float sum = 0.0f;
        UNROLL for (int w = 0; w < WARPS; ++w) sum += sums[w * size + k];
        int n = k % PADDED, t = part * PART + k / PADDED % PART;
        float* to = k < size / 2 ? p.dC : p.dB;
        i64 row = (at.part * p.rows + at.row) * p.groups + at.group;
        bool constant = k < size / 2 ? CONST_C : CONST_B;
        if (!constant && n < STATES && t < s.steps)
            to[(row * (p.end - p.begin) + s.start - p.begin + t) * STATES + n] = sum;
    }
}

// The state before every part of a window, from the one before the window.
__device__ __forceinline__ void states_before_parts(const BackTiles& tile, const Place& at, Thread& my, float* h) {
    float4* before = (float4*)tile.before + threadIdx.x;
    const float* bs = tile.b + COPY_OF(at.channel) * PADDED + at.lane * NS;
    _Pragma("unroll 1") for (int part = 0;; ++part) {
        UNROLL for (int j = 0; j < NS; j += 4)
            before[(part * (NS / 4) + j / 4) * THREADS] = make_float4(h[j], h[j + 1], h[j + 2], h[j + 3]);
        if (part == PARTS - 1) break;
        UNROLL for (int i = 0; i < PART; ++i) {
            int t = part * PART + i;
            float dt = tile.dt[at.channel * ROW + t], x = dt * tile.u[at.channel * ROW + t];
            if (!CONST_B) read_share(bs + t * COPY_PITCH, my.b);
            UNROLL for (int j = 0; j < NS; ++j) h[j] = fmaf(x, my.b[j], exp2_fast(dt * my.a2[j]) * h[j]);
        }
    }
}

// One window: tiles are staged; h is the state before it.
__device__ __forceinline__ void walk_back(const Problem& p, const BackTiles& tile, const Place& at, Thread& my,
                                          const Span& s, float* h) {
    const int size = WARPS * 2 * PART * PADDED;
    Window sum;
    UNROLL for (int j = 0; j < NS; ++j) sum.dA[j] = sum.dB[j] = sum.dC[j] = 0.0f;
    sum.dD = sum.dbias = 0.0f;
    states_before_parts(tile, at, my, h);
    _Pragma("unroll 1") for (int part = PARTS - 1; part >= 0; --part) {
        float decay[PART][NS], decayed[PART][NS], dc[VALUES], db[VALUES], ys[PART], ss[2 * PART];
        float* sums = tile.sums + part % BUFFERS * size;
        float* mine = sums + threadIdx.x / 32 * (size / WARPS);
        UNROLL for (int j = 0; j < NS; j += 4)
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
            write_sums(p, sums, at, s, part);
        }
    }
    UNROLL for (int j = 0; j < NS; ++j) {
        my.dA[j] += sum.dA[j];
        if (CONST_B) my.dB[j] += sum.dB[j];
        if (CONST_C) my.dC[j] += sum.dC[j];
    }
    my.dD += sum.dD, my.dbias += sum.dbias;
}
