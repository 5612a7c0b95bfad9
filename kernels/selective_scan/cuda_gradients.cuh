// The kernel of the backward pass: stages windows, last first, walks back through them (cuda_backward.cuh), and writes
// what comes out of each.

__device__ __forceinline__ void begin_thread(const Problem& p, const Place& at, Thread& my) {
    const int turn = TURN_OF(at.channel);
    load_states(p.A, at.first + at.channel, at, turn, my.a2);
    if (at.end == p.end) load_states(p.dlast, by_row(p, at), at, turn, my.flow);
    else load_states(p.ends, by_segment(p, at), at, turn, my.flow);
    if (CONST_B) load_constant(p.B, at, turn, my.b);
    if (CONST_C) load_constant(p.C, at, turn, my.c);
    my.skip = p.D != 0 && at.channel < at.live ? p.D[at.first + at.channel] : 0.0f;
    UNROLL for (int j = 0; j < NS; ++j) my.a2[j] *= LOG2E, my.dA[j] = my.dB[j] = my.dC[j] = 0.0f;
    my.dD = my.dbias = 0.0f;
}

__device__ __forceinline__ void state_before(const Problem& p, const Place& at, i64 start, float* h) {
    const int turn = TURN_OF(at.channel);
    i64 windows = (p.length - 1) / WINDOW, channel = at.first + at.channel;
    if (start == 0) load_states(p.initial, by_row(p, at), at, turn, h);
    else load_states(p.kept, (at.row * windows + start / WINDOW - 1) * p.channels + channel, at, turn, h);
}

__device__ __forceinline__ void stage_window(const Problem& p, const BackTiles& tile, const Place& at, const Span& s) {
    read_steps<true>(p, at, s, tile.dt, tile.slope);
    read_plain(p.u, at, s, tile.u);
    if (!CONST_B) read_matrix<COPIES, COPY_STEP, COPY_PITCH>(p.B, at, s, tile.b);
    if (!CONST_C) read_matrix<COPIES, COPY_STEP, COPY_PITCH>(p.C, at, s, tile.c);
    read_gradient(p, at, s, tile.g);
    __syncthreads();
}

// du, ddelta and dz, of which the tiles u, dt and g hold du, ddelta and y.
__device__ __forceinline__ void write_window(const Problem& p, const BackTiles& tile, const Place& at, const Span& s) {
    __syncthreads();
    write_tile(p.du, at, s, tile.u);
    write_tile(p.ddelta, at, s, tile.dt);
    if (p.z.data != 0) {
        read_tile(p.dout, at, s, tile.g, [](float* to, float dout, int, bool) { *to *= dout; });
        __syncthreads();
        read_tile(p.z, at, s, tile.g, [](float* to, float z, int, bool) {
            float s = sigmoid(z);
            *to *= s * fmaf(z, 1.0f - s, 1.0f);
        });
        __syncthreads();
        write_tile(p.dz, at, s, tile.g);
    }
    __syncthreads();
}

__device__ __forceinline__ void write_channel_sums(const Problem& p, const Place& at, const Thread& my) {
    const int turn = TURN_OF(at.channel);
    store_states(p.dA, by_segment(p, at), at, turn, my.dA);
    if (CONST_B) store_states(p.dB, by_segment(p, at), at, turn, my.dB);
    if (CONST_C) store_states(p.dC, by_segment(p, at), at, turn, my.dC);
    float dD = over_lanes(my.dD), dbias = over_lanes(my.dbias);
    if (at.lane == 0 && at.channel < at.live) p.dD[by_segment(p, at)] = dD, p.dbias[by_segment(p, at)] = dbias;
}

SCAN_KERNEL(BLOCKS) scan_backward(const Problem p) {
    SHARED_MEMORY(memory);
    BackTiles tile = back_tiles(memory);
    Place at = place(p);
    Thread my;
    begin_thread(p, at, my);
    i64 windows = (at.end - at.begin + WINDOW - 1) / WINDOW;
    for (i64 w = windows - 1; w >= 0; --w) {
        Span s = span(at, at.begin + w * WINDOW);
        float h[NS];
        state_before(p, at, s.start, h);
        stage_window(p, tile, at, s);
        walk_back(p, tile, at, my, s, h);
        write_window(p, tile, at, s);
    }
    if (at.begin == p.begin) store_states(p.dinitial, by_row(p, at), at, TURN_OF(at.channel), my.flow);
    write_channel_sums(p, at, my);
}
