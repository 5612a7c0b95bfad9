// Windows of the backward pass, between global memory and tiles in shared memory.
// A tile is float (CHANNELS, WINDOW). Four steps lie together; where a row's fours lie depends on the row, so that
// neither a row's steps nor a step's channels meet in one bank.

__device__ __forceinline__ int spot(int row, int step) {
    return row * WINDOW + (((step >> 2) ^ row ^ (row >> 3)) & 7) * 4 + (step & 3);
}

#define OF_TILE ((CHANNELS * WINDOW / 4 + THREADS - 1) / THREADS)  // quads of a tile that a thread moves

__device__ __forceinline__ bool is_quad(int i) {
    return CHANNELS * WINDOW / 4 % THREADS == 0 || threadIdx.x + i * THREADS < CHANNELS * WINDOW / 4;
}

__device__ __forceinline__ Quad quad_of_tile(int thread, int i) {
    return quad<ACROSS>(thread + i * THREADS, CHANNELS, WINDOW);
}

__device__ __forceinline__ void fetch_view(const View& v, const Place& at, const Span& s, Raw* raw) {
    if (v.data == 0) return;
    Area a = area(v, at, s, WINDOW);
    int thread = opaque((int)threadIdx.x);  // else addresses lie in registers from the first window on
    UNROLL for (int i = 0; i < OF_TILE; ++i)
        if (is_quad(i)) raw[i] = fetch<ACROSS>(a, quad_of_tile(thread, i));
}

__device__ __forceinline__ void expect_view(const View& v, const Place& at, const Span& s) {
    if (v.data == 0) return;
    Area a = area(v, at, s, WINDOW);
    int thread = opaque((int)threadIdx.x);
    UNROLL for (int i = 0; i < OF_TILE; ++i)
        if (a.whole && is_quad(i)) expect(of_whole(a, quad_of_tile(thread, i)));
}

__device__ __forceinline__ void write_view(const View& v, const Place& at, const Span& s, int i, const float* x) {
    write<ACROSS>(area(v, at, s, WINDOW), quad_of_tile(opaque((int)threadIdx.x), i), pack(x));
}

__device__ __forceinline__ void put_quad(float* tile, const Quad& q, const float* x) {
    if (ACROSS) {
        UNROLL for (int k = 0; k < 4; ++k) tile[spot(q.row + k, q.step)] = x[k];
    } else {
        *(float4*)(tile + spot(q.row, q.step)) = make_float4(x[0], x[1], x[2], x[3]);
    }
}

__device__ __forceinline__ void get_quad(const float* tile, const Quad& q, float* x) {
    if (ACROSS) {
        UNROLL for (int k = 0; k < 4; ++k) x[k] = tile[spot(q.row + k, q.step)];
    } else {
        four(tile + spot(q.row, q.step), x);
    }
}

// Steps first.. of the thread's channel.
template <int COUNT>
__device__ __forceinline__ void steps_of(const float* tile, const Place& at, int first, float* x) {
    const float* from = tile + spot(at.channel, first);
    UNROLL for (int i = 0; i < COUNT % 4; ++i) x[i] = from[i];
    UNROLL for (int i = COUNT % 4; i < COUNT; i += 4) four(tile + spot(at.channel, first + i), x + i);
}

// Step sizes and, with a tile for it, their derivative by delta. Both exactly 0 where there is no step: what flows
// backwards through padding must not reach the gradient of the bias.
__device__ __forceinline__ void stage_steps(const Problem& p, const Place& at, const Span& s, const Raw* delta, float* tile,
                                            float* slopes) {
    Area a = area(p.delta, at, s, WINDOW);
    UNROLL for (int i = 0; i < OF_TILE; ++i) {
        if (!is_quad(i)) continue;
        Quad q = quad_of_tile(threadIdx.x, i);
        float x[4], slope[4];
        unpack(delta[i], x);
        UNROLL for (int k = 0; k < 4; ++k) {
            bool there = inside<ACROSS>(a, q, k);
            if (there && p.bias != 0) x[k] += p.bias[at.first + q.row + (ACROSS ? k : 0)];
            slope[k] = !there ? 0.0f : p.softplus ? sigmoid(x[k]) : 1.0f;
            x[k] = !there ? 0.0f : p.softplus ? softplus(x[k]) : x[k];
        }
        put_quad(tile, q, x);
        if (slopes != 0) put_quad(slopes, q, slope);
    }
}

__device__ __forceinline__ void stage_plain(const Raw* raw, float* tile) {
    UNROLL for (int i = 0; i < OF_TILE; ++i) {
        if (!is_quad(i)) continue;
        float x[4];
        unpack(raw[i], x);
        put_quad(tile, quad_of_tile(threadIdx.x, i), x);
    }
}

// g = dout silu(z).
__device__ __forceinline__ void stage_gradient(const Problem& p, const Raw* dout, const Raw* z, float* tile) {
    UNROLL for (int i = 0; i < OF_TILE; ++i) {
        if (!is_quad(i)) continue;
        float g[4], gate[4];
        unpack(dout[i], g);
        if (p.z.data != 0) {
            unpack(z[i], gate);
            UNROLL for (int k = 0; k < 4; ++k) g[k] *= gate[k] * sigmoid(gate[k]);
        }
        put_quad(tile, quad_of_tile(threadIdx.x, i), g);
    }
}

// Quad i of a thread's share of a variable matrix's window.
__device__ __forceinline__ Raw fetch_states(const Matrix& m, const Area& a, int i) {
    Quad along = {i % PADDED, i / PADDED * 4};
    return m.together == 2 ? fetch<true>(a, quad<true>(i, PADDED, WINDOW)) : fetch<false>(a, along);
}

template <int COUNT, int PITCH>
__device__ __forceinline__ void put_states(const Matrix& m, int i, const Raw& raw, float* tile) {
    float x[4];
    unpack(raw, x);
    UNROLL for (int k = 0; k < 4; ++k) {
        Quad across = quad<true>(i, PADDED, WINDOW);
        int n = m.together == 2 ? across.row + k : i % PADDED, t = m.together == 2 ? across.step : i / PADDED * 4 + k;
        UNROLL for (int copy = 0; copy < COUNT; ++copy) tile[t * PITCH + copy * PADDED + (n ^ TURN_OF(copy))] = x[k];
    }
}

// A variable matrix's window as float (WINDOW, PITCH), a step of which is COUNT copies of PADDED states. Copy q holds in
// place n the state n ^ TURN_OF(q): a thread whose states are turned so reads four of them at once.
template <int COUNT, int PITCH>
__device__ __forceinline__ void stage_matrix(const Matrix& m, const Place& at, const Span& s, float* tile) {
    const int quads = PADDED * WINDOW / 4, many = quads > 2 * THREADS ? 4 : quads > THREADS ? 2 : 1;  // at a time
    Area a = area(m, at, s, WINDOW, 0, PADDED);
    _Pragma("unroll 1") for (int start = opaque((int)threadIdx.x); start < quads; start += many * THREADS) {
        Raw raw[many];
        UNROLL for (int i = 0; i < many; ++i)
            if (start + i * THREADS < quads) raw[i] = fetch_states(m, a, start + i * THREADS);
        UNROLL for (int i = 0; i < many; ++i)
            if (start + i * THREADS < quads) put_states<COUNT, PITCH>(m, start + i * THREADS, raw[i], tile);
    }
}
