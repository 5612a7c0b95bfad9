// The kernel of the backward pass: stages windows, last first, walks back through them (cuda_backward.cuh), and writes
// what comes out of each.

__device__ __forceinline__ void begin_thread(const Problem& p, const Place& at, Thread& my) {
    const int turn = TURN_OF(at.channel);
    load_states(p.A, at.first + at.channel, at, turn, my.a2);
    if (at.end == p.end) load_states(p.dlast, by_row(p, at, at.channel), at, turn, my.flow);
    else load_states(p.ends, by_segment(p, at, at.channel), at, turn, my.flow);
    if (CONST_B) load_constant(p.B, at, turn, my.b);
    if (CONST_C) load_constant(p.C, at, turn, my.c);
    my.skip = p.D != 0 && at.channel < at.live ? p.D[at.first + at.channel] : 0.0f;
    UNROLL for (int j = 0; j < NS; ++j) my.a2[j] *= LOG2E;
}

__device__ __forceinline__ void state_before(const Problem& p, const Place& at, i64 start, float* h) {
    const int turn = TURN_OF(at.channel);
    i64 windows = (p.length - 1) / WINDOW, channel = at.first + at.channel;
    if (start == 0) load_states(p.initial, by_row(p, at, at.channel), at, turn, h);
    else load_states(p.kept, (at.row * windows + start / WINDOW - 1) * p.channels + channel, at, turn, h);
}

__device__ __forceinline__ void stage_window(const Problem& p, const BackTiles& tile, const Place& at, const Span& s) {
    Raw delta[OF_TILE], u[OF_TILE], dout[OF_TILE], z[OF_TILE];
    fetch_view(p.delta, at, s, delta), fetch_view(p.u, at, s, u);
    fetch_view(p.dout, at, s, dout), fetch_view(p.z, at, s, z);
    if (!CONST_B) stage_matrix<COPIES, COPY_PITCH>(p.B, at, s, tile.b);
    if (!CONST_C) stage_matrix<COPIES, COPY_PITCH>(p.C, at, s, tile.c);
    stage_steps(p, at, s, delta, tile.dt, tile.slope);
    stage_plain(u, tile.u);
    stage_gradient(p, dout, z, tile.g);
    __syncthreads();
}

// What the window before is going to read; registers to keep it in there are none.
__device__ __forceinline__ void expect_window(const Problem& p, const Place& at, i64 start) {
    i64 windows = (p.length - 1) / WINDOW, channel = at.first + at.channel;
    if (start < at.begin) return;
    Span s = span(at, start, WINDOW);
    expect_view(p.delta, at, s), expect_view(p.u, at, s), expect_view(p.dout, at, s), expect_view(p.z, at, s);
    if (start > 0 && at.channel < at.live)
        expect(p.kept + ((at.row * windows + start / WINDOW - 1) * p.channels + channel) * STATES + at.lane * NS);
}

// du, ddelta and dz, of which the tiles u, dt and g hold du, ddelta and y.
__device__ __forceinline__ void write_window(const Problem& p, const BackTiles& tile, const Place& at, const Span& s) {
    Raw dout[OF_TILE], z[OF_TILE];
    if (p.z.data != 0) fetch_view(p.dout, at, s, dout), fetch_view(p.z, at, s, z);
    __syncthreads();
    UNROLL for (int i = 0; i < OF_TILE; ++i) {
        if (!is_quad(i)) continue;
        Quad q = quad_of_tile(threadIdx.x, i);
        float x[4], gate[4], g[4];
        get_quad(tile.u, q, x), write_view(p.du, at, s, i, x);
        get_quad(tile.dt, q, x), write_view(p.ddelta, at, s, i, x);
        if (p.z.data == 0) continue;
        get_quad(tile.g, q, x), unpack(z[i], gate), unpack(dout[i], g);
        UNROLL for (int k = 0; k < 4; ++k) {
            float open = sigmoid(gate[k]);
            x[k] *= g[k] * open * fmaf(gate[k], 1.0f - open, 1.0f);
        }
        write_view(p.dz, at, s, i, x);
    }  // what is staged next into these tiles, the same thread puts where it has read
}

__device__ __forceinline__ void store_totals(float* to, const Problem& p, const Place& at, const float* totals) {
    float x[NS];
    UNROLL for (int j = 0; j < NS; ++j) x[j] = totals[j * THREADS];
    store_states(to, by_segment(p, at, at.channel), at, TURN_OF(at.channel), x);
}

__device__ __forceinline__ void write_totals(const Problem& p, const Place& at, const float* totals) {
    store_totals(p.dA, p, at, totals), totals += NS * THREADS;
    if (CONST_B) store_totals(p.dB, p, at, totals), totals += NS * THREADS;
    if (CONST_C) store_totals(p.dC, p, at, totals), totals += NS * THREADS;
    float dD = over_lanes(totals[0]), dbias = over_lanes(totals[THREADS]);
    i64 place = by_segment(p, at, at.channel);
    if (at.lane == 0 && at.channel < at.live) p.dD[place] = dD, p.dbias[place] = dbias;
}

SCAN_KERNEL(BLOCKS) scan_backward(const Problem p) {
    SHARED_MEMORY(memory);
    BackTiles tile = back_tiles(memory);
    Place at = place(p);
    Thread my;
    begin_thread(p, at, my);
    UNROLL for (int i = 0; i < OF_CHANNEL; ++i) tile.totals[i * THREADS] = 0.0f;
    i64 windows = (at.end - at.begin + WINDOW - 1) / WINDOW;
    for (i64 w = windows - 1; w >= 0; --w) {
        Span s = span(at, at.begin + w * WINDOW, WINDOW);
        float h[NS];
        state_before(p, at, s.start, h);
        stage_window(p, tile, at, s);
        expect_window(p, at, s.start - WINDOW);
        walk_back(p, tile, at, my, s, h);
        write_window(p, tile, at, s);
    }
    if (at.begin == p.begin) store_states(p.dinitial, by_row(p, at, at.channel), at, TURN_OF(at.channel), my.flow);
    write_totals(p, at, tile.totals);
}
