// The forward pass. A window of a channel's time lies in the registers of LANES neighbouring threads, EACH steps with
// each, and its states come one after the other. A thread runs its steps from zero; from their end states and decays the
// threads find by exchange what flows into each; from that they run their steps again, with the decays that they kept.
// So all of a channel's states share what is read, and only B and C, which all channels share, go through shared memory.

#define EACH 8                // steps of a thread
#define REACH (LANES * EACH)  // steps of a window
#define HALF (REACH / 2)
#define CHUNK (STATES < 16 ? STATES : 16)  // states whose B and C are staged at once
#define CHUNKS ((STATES + CHUNK - 1) / CHUNK)
#define OF_MATRIX ((CHUNK * REACH / 4 + THREADS - 1) / THREADS)  // quads of a matrix's chunk that a thread stages
#define AT_ONCE (TWINS == 1 && STATES % 2 == 0 && !CONST_B && !CONST_C ? 2 : 1)  // states that go side by side
#define PAIRS (TWINS * AT_ONCE)                                  // of a channel and a state
#define OF_VIEW (2 * TWINS)                                      // of a tensor's window
#define MATRIX_PITCH (REACH + 4)
#define STATE_PITCH (STATES | 1)
#define RAW_PITCH (REACH + 16 / SIZE)
#define Y_PITCH (REACH + 4)

struct Tiles {
    float *b, *c;       // (CHUNK, MATRIX_PITCH): a thread's first four steps, then everybody's second four
    float *a2, *carry;  // (CHANNELS, STATE_PITCH): A log2(e); the states before the window, each its first lane's own
    char *u, *delta;    // (CHANNELS, RAW_PITCH) elements, if channels lie together; then y, float (CHANNELS, Y_PITCH)
};

__device__ __forceinline__ Tiles tiles(float* memory) {
    const int raw = ACROSS * CHANNELS * RAW_PITCH * SIZE;
    Tiles t;
    t.b = memory, t.c = t.b + CHUNK * MATRIX_PITCH;
    t.u = (char*)(t.c + CHUNK * MATRIX_PITCH), t.delta = t.u + raw;
    t.a2 = (float*)(t.delta + raw), t.carry = t.a2 + CHANNELS * STATE_PITCH;
    return t;
}

__device__ __forceinline__ int twin(const Place& at, int k) { return at.channel + k * TEAMS; }

// ---- channels: between global memory and the threads that own their steps

struct Inputs {  // of one window: a thread's quads
    Raw u[OF_VIEW], delta[OF_VIEW];
};

// Number i of the quads that a thread moves: of its own steps, or where channels lie together across these.
__device__ __forceinline__ Quad quad_of_view(int thread, int i) {
    Quad own = {thread / LANES + i / 2 * TEAMS, thread % LANES * EACH + i % 2 * 4};
    return ACROSS ? quad<true>(thread + i * THREADS, CHANNELS, REACH) : own;
}

__device__ __forceinline__ void fetch_view(const View& v, const Place& at, const Span& s, Raw* raw) {
    if (v.data == 0) return;
    Area a = area(v, at, s, REACH);
    int thread = opaque((int)threadIdx.x);  // else addresses lie in registers from the first window on
    UNROLL for (int i = 0; i < OF_VIEW; ++i) raw[i] = fetch<ACROSS>(a, quad_of_view(thread, i));
}

// Quads across channels into a tile, from which their owners read them, with a barrier between.
__device__ __forceinline__ void give(char* tile, const Place& at, const Raw* raw) {
    UNROLL for (int i = 0; i < OF_VIEW; ++i) {
        Quad q = quad_of_view(threadIdx.x, i);
        UNROLL for (int k = 0; k < 4; ++k) store_bits(tile, (q.row + k) * RAW_PITCH + q.step, element(raw[i], k));
    }
}

__device__ __forceinline__ void take(const char* tile, const Place& at, Raw* raw) {
    UNROLL for (int i = 0; i < OF_VIEW; ++i)
        raw[i] = shared4(tile + (twin(at, i / 2) * RAW_PITCH + at.lane * EACH + i % 2 * 4) * SIZE);
}

// ---- B and C

struct Chunk {  // what a thread has read of a chunk of them
    Raw b[OF_MATRIX], c[OF_MATRIX];
};

__device__ __forceinline__ void fetch_matrix(const Matrix& m, const Place& at, const Span& s, int first, Raw* raw) {
    Area a = area(m, at, s, REACH, first, CHUNK);
    int thread = opaque((int)threadIdx.x);
    UNROLL for (int i = 0; i < OF_MATRIX; ++i) {
        int k = thread + i * THREADS;
        if (CHUNK * REACH / 4 % THREADS != 0 && k >= CHUNK * REACH / 4) break;
        if (CHUNK % 4 == 0 && m.together == 2) raw[i] = fetch<true>(a, quad<true>(k, CHUNK, REACH));
        else raw[i] = fetch<false>(a, quad<false>(k, CHUNK, REACH));
    }
}

__device__ __forceinline__ int place_of_step(int step) { return (step & 4 ? HALF : 0) + step / EACH * 4 + (step & 3); }

__device__ __forceinline__ void stage_matrix(const Matrix& m, const Raw* raw, float* tile) {
    UNROLL for (int i = 0; i < OF_MATRIX; ++i) {
        int k = threadIdx.x + i * THREADS;
        if (CHUNK * REACH / 4 % THREADS != 0 && k >= CHUNK * REACH / 4) break;
        float x[4];
        unpack(raw[i], x);
        if (CHUNK % 4 == 0 && m.together == 2) {
            Quad q = quad<true>(k, CHUNK, REACH);
            UNROLL for (int j = 0; j < 4; ++j) tile[(q.row + j) * MATRIX_PITCH + place_of_step(q.step)] = x[j];
        } else {
            Quad q = quad<false>(k, CHUNK, REACH);
            *(float4*)(tile + q.row * MATRIX_PITCH + place_of_step(q.step)) = make_float4(x[0], x[1], x[2], x[3]);
        }
    }
}

__device__ __forceinline__ void read_share(const float* from, float* x) { four(from, x), four(from + HALF, x + 4); }

// A constant matrix's state n of the thread's channels, at every step the same.
__device__ __forceinline__ void read_constant(const Matrix& m, const Place& at, int n, float (*x)[EACH]) {
    UNROLL for (int t = 0; t < TWINS; ++t) {
        float value = constant(m, at, twin(at, t), n);
        UNROLL for (int i = 0; i < EACH; ++i) x[t][i] = value;
    }
}

// ---- the recurrence

struct Work {  // a thread's steps of a window
    float dt[TWINS][EACH], x[TWINS][EACH], y[TWINS][EACH];  // x = dt u
};

__device__ __forceinline__ void begin_work(const Problem& p, const Place& at, const Span& s, const Inputs& in, Work& my) {
    UNROLL for (int t = 0; t < TWINS; ++t) {
        int channel = twin(at, t);
        bool there = channel < at.live;
        float bias = there && p.bias != 0 ? p.bias[at.first + channel] : 0.0f;
        float skip = there && p.D != 0 ? p.D[at.first + channel] : 0.0f;
        float u[EACH], dt[EACH];
        unpack(in.u[2 * t], u), unpack(in.u[2 * t + 1], u + 4);
        unpack(in.delta[2 * t], dt), unpack(in.delta[2 * t + 1], dt + 4);
        UNROLL for (int i = 0; i < EACH; ++i) dt[i] += bias;
        if (p.softplus) {
            UNROLL for (int i = 0; i < EACH; ++i) dt[i] = softplus(dt[i]);
        }
        int steps = there ? s.steps - at.lane * EACH : 0;
        if (__builtin_expect(steps < EACH, 0)) {
            UNROLL for (int i = 0; i < EACH; ++i) dt[i] = i < steps ? dt[i] : 0.0f;
        }
        UNROLL for (int i = 0; i < EACH; ++i) {
            my.dt[t][i] = dt[i], my.y[t][i] = skip * u[i];
            my.x[t][i] = opaque(dt[i] * u[i]);  // else it is computed again for every state, to save a register
        }
    }
}

// End states and decays of a lane's steps become those of all steps up to its last.
template <int HOP>
__device__ __forceinline__ void after_those_before(const Place& at, float& end, float& decay) {
#ifdef EMULATED
    float end_before = __shfl_up_sync(FULL_WARP, end, HOP, LANES), decay_before = __shfl_up_sync(FULL_WARP, decay, HOP, LANES);
    if (at.lane >= HOP) end = fmaf(decay, end_before, end), decay *= decay_before;
#else  // as PTX: the shuffle itself says whether there is a lane before
    asm("{.reg .pred there; .reg .f32 end, decay;"
        "shfl.sync.up.b32 end|there, %0, %2, %3, -1; shfl.sync.up.b32 decay, %1, %2, %3, -1;"
        "@there fma.rn.f32 %0, %1, end, %0; @there mul.rn.f32 %1, %1, decay;}"
        : "+f"(end), "+f"(decay)
        : "n"(HOP), "n"((32 - LANES) << 8));
#endif
}

// What flows into each lane from those before it, of end states and decays since zero; into the first, from the last.
__device__ __forceinline__ void flow_in(const Place& at, float* end, float* decay) {
    UNROLL for (int k = 0; LANES > 1 && k < PAIRS; ++k) after_those_before<1>(at, end[k], decay[k]);
    UNROLL for (int k = 0; LANES > 2 && k < PAIRS; ++k) after_those_before<2>(at, end[k], decay[k]);
    UNROLL for (int k = 0; LANES > 4 && k < PAIRS; ++k) after_those_before<4>(at, end[k], decay[k]);
    UNROLL for (int k = 0; LANES > 8 && k < PAIRS; ++k) after_those_before<8>(at, end[k], decay[k]);
    UNROLL for (int k = 0; LANES > 16 && k < PAIRS; ++k) after_those_before<16>(at, end[k], decay[k]);
    UNROLL for (int k = 0; k < PAIRS; ++k) end[k] = __shfl_sync(FULL_WARP, end[k], at.lane - 1, LANES);
}

// A state, or two, of a thread's channels through a window. a2, carry: the first channel's; b, c: of each state, or where
// they are constant of each channel. start: gets the states before the thread's steps, (TWINS, AT_ONCE).
template <bool ENDS>
__device__ __forceinline__ void step_through(const Place& at, const float* a2, float (*b)[EACH], float (*c)[EACH],
                                             Work& my, float* carry, float* start) {
    float decay[PAIRS][EACH], added[PAIRS][EACH], end[PAIRS], all[PAIRS];
    bool first = at.lane == 0;
    UNROLL for (int k = 0; k < PAIRS; ++k) {
        int t = k / AT_ONCE, j = k % AT_ONCE, place = t * TEAMS * STATE_PITCH + j;
        float a = a2[place];
        end[k] = start[k] = first ? carry[place] : 0.0f;
        UNROLL for (int i = 0; i < EACH; ++i) {
            decay[k][i] = exp2_fast(my.dt[t][i] * a), added[k][i] = my.x[t][i] * b[CONST_B ? k : j][i];
            end[k] = fmaf(decay[k][i], end[k], added[k][i]);
            all[k] = i == 0 ? decay[k][i] : all[k] * decay[k][i];
        }
    }
    flow_in(at, end, all);
    UNROLL for (int k = 0; k < PAIRS; ++k) {
        int t = k / AT_ONCE, j = k % AT_ONCE;
        if (first) carry[t * TEAMS * STATE_PITCH + j] = end[k];
        start[k] = opaque(first ? start[k] : end[k]);  // else the first lane goes its own way, and the others wait
    }
    UNROLL for (int k = 0; !ENDS && k < PAIRS; ++k) {
        int t = k / AT_ONCE, j = k % AT_ONCE;
        float h = start[k];
        UNROLL for (int i = 0; i < EACH; ++i)
            h = fmaf(decay[k][i], h, added[k][i]), my.y[t][i] = fmaf(c[CONST_C ? k : j][i], h, my.y[t][i]);
    }
}

// The states of a chunk, whose B and C are staged. KEEP: those before every WINDOW steps.
template <bool ENDS, bool KEEP>
__device__ __forceinline__ void walk(const Problem& p, const Place& at, const Span& s, const Tiles& tile, int first,
                                     Work& my) {
    i64 step = s.start + at.lane * EACH, windows = (p.length - 1) / WINDOW;
    bool kept = KEEP && step % WINDOW == 0 && step > 0 && step < at.end;
    float* to = p.kept + ((at.row * windows + step / WINDOW - 1) * p.channels + at.first + at.channel) * STATES + first;
    const float *bs = tile.b + at.lane * 4, *cs = tile.c + at.lane * 4, *a2 = tile.a2 + at.channel * STATE_PITCH + first;
    float* carry = tile.carry + at.channel * STATE_PITCH + first;
    _Pragma("unroll 1") for (int n = 0; n < CHUNK && first + n < STATES; n += AT_ONCE) {
        float b[PAIRS][EACH], c[PAIRS][EACH], start[PAIRS];
        UNROLL for (int j = 0; j < AT_ONCE; ++j) {
            if (!CONST_B) read_share(bs + (n + j) * MATRIX_PITCH, b[j]);
            if (!CONST_C && !ENDS) read_share(cs + (n + j) * MATRIX_PITCH, c[j]);
        }
        if (CONST_B) read_constant(p.B, at, first + n, b);
        if (CONST_C && !ENDS) read_constant(p.C, at, first + n, c);
        step_through<ENDS>(at, a2 + n, b, c, my, carry + n, start);
        UNROLL for (int k = 0; KEEP && k < PAIRS; ++k)
            if (kept && twin(at, k / AT_ONCE) < at.live) to[k / AT_ONCE * TEAMS * STATES + k % AT_ONCE] = start[k];
        if (KEEP) to += AT_ONCE;
    }
}

// A thread's y, four steps of its own or, by way of a tile, of four channels.
__device__ __forceinline__ void exchange_y(const Place& at, const Tiles& tile, const Work& my, float (*y)[4]) {
    float* ys = (float*)tile.u;
    if (ACROSS) __syncthreads();  // u and delta have been read
    UNROLL for (int i = 0; i < OF_VIEW; ++i) {
        const float* own = my.y[i / 2] + i % 2 * 4;
        UNROLL for (int k = 0; k < 4; ++k) y[i][k] = own[k];
        if (ACROSS)
            *(float4*)(ys + twin(at, i / 2) * Y_PITCH + at.lane * EACH + i % 2 * 4) = make_float4(own[0], own[1], own[2], own[3]);
    }
    if (!ACROSS) return;
    __syncthreads();
    UNROLL for (int i = 0; i < OF_VIEW; ++i) {
        Quad q = quad_of_view(threadIdx.x, i);
        UNROLL for (int k = 0; k < 4; ++k) y[i][k] = ys[(q.row + k) * Y_PITCH + q.step];
    }
}

__device__ __forceinline__ void write_out(const Problem& p, const Place& at, const Span& s, const Tiles& tile,
                                          const Raw* z, const Work& my) {
    float y[OF_VIEW][4];
    exchange_y(at, tile, my, y);
    if (p.z.data != 0) {
        UNROLL for (int i = 0; i < OF_VIEW; ++i) {
            float gate[4];
            unpack(z[i], gate);
            UNROLL for (int k = 0; k < 4; ++k) y[i][k] *= gate[k] * sigmoid(gate[k]);
        }
    }
    Area a = area(p.out, at, s, REACH);
    int thread = opaque((int)threadIdx.x);
    UNROLL for (int i = 0; i < OF_VIEW; ++i) write<ACROSS>(a, quad_of_view(thread, i), pack(y[i]));
}

// ---- the kernels

// Each thread's part of A and of the states that a segment begins with; ENDS: with zero.
template <bool ENDS>
__device__ __forceinline__ void begin_states(const Problem& p, const Place& at, const Tiles& tile) {
    const float* from = at.segment == 0 ? p.initial : p.ends;
    for (int t = 0; t < TWINS; ++t) {
        int channel = twin(at, t), place = channel * STATE_PITCH;
        i64 start = (at.segment == 0 ? by_row(p, at, channel) : by_segment(p, at, channel)) * STATES;
        for (int n = at.lane; n < STATES; n += LANES)
            tile.a2[place + n] = channel < at.live ? p.A[(i64)(at.first + channel) * STATES + n] * LOG2E : 0.0f;
        for (int n = 0; at.lane == 0 && n < STATES; ++n)
            tile.carry[place + n] = !ENDS && from != 0 && channel < at.live ? from[start + n] : 0.0f;
    }
}

__device__ __forceinline__ void end_states(const Place& at, const Tiles& tile, float* to, bool by_segments,
                                           const Problem& p) {
    for (int t = 0; at.lane == 0 && t < TWINS; ++t) {
        int channel = twin(at, t);
        i64 place = (by_segments ? by_segment(p, at, channel) : by_row(p, at, channel)) * STATES;
        for (int n = 0; channel < at.live && n < STATES; ++n) to[place + n] = tile.carry[channel * STATE_PITCH + n];
    }
}

__device__ __forceinline__ void fetch_inputs(const Problem& p, const Place& at, const Span& s, Inputs& in) {
    fetch_view(p.u, at, s, in.u);
    fetch_view(p.delta, at, s, in.delta);
}

template <bool ENDS>
__device__ __forceinline__ void fetch_chunk(const Problem& p, const Place& at, const Span& s, int first, Chunk& next) {
    if (!CONST_B) fetch_matrix(p.B, at, s, first, next.b);
    if (!CONST_C && !ENDS) fetch_matrix(p.C, at, s, first, next.c);
}

// What was fetched across channels, to the owners of the steps; in between, B and C are staged.
template <bool ENDS>
__device__ __forceinline__ void stage(const Problem& p, const Place& at, const Tiles& tile, const Chunk& next, bool first,
                                      Inputs& in) {
    __syncthreads();  // what is overwritten now has been read
    if (ACROSS && first) give(tile.u, at, in.u), give(tile.delta, at, in.delta);
    if (!CONST_B) stage_matrix(p.B, next.b, tile.b);
    if (!CONST_C && !ENDS) stage_matrix(p.C, next.c, tile.c);
    __syncthreads();
    if (ACROSS && first) take(tile.u, at, in.u), take(tile.delta, at, in.delta);
}

// A segment's windows, one after the other; what comes next is read before it is needed. Returns the sum of a thread's
// step sizes in sums[TWINS].
template <bool ENDS>
__device__ __forceinline__ void run(const Problem& p, const Place& at, const Tiles& tile, float* sums) {
    Inputs in;
    Chunk next;
    Work my;
    Raw z[OF_VIEW];
    begin_states<ENDS>(p, at, tile);
    fetch_inputs(p, at, span(at, at.begin, REACH), in);
    fetch_chunk<ENDS>(p, at, span(at, at.begin, REACH), 0, next);
    for (i64 start = at.begin; start < at.end; start += REACH) {
        Span s = span(at, start, REACH), after = span(at, start + REACH, REACH);
        _Pragma("unroll 1") for (int chunk = 0; chunk < CHUNKS; ++chunk) {
            stage<ENDS>(p, at, tile, next, chunk == 0, in);
            if (chunk == 0) {
                begin_work(p, at, s, in, my);
                if (!ENDS) fetch_view(p.z, at, s, z);
                if (start + REACH < at.end) fetch_inputs(p, at, after, in);
            }
            if (chunk + 1 < CHUNKS) fetch_chunk<ENDS>(p, at, s, (chunk + 1) * CHUNK, next);
            else if (start + REACH < at.end) fetch_chunk<ENDS>(p, at, after, 0, next);
            if (ENDS || p.kept == 0) walk<ENDS, false>(p, at, s, tile, chunk * CHUNK, my);
            else walk<ENDS, !ENDS>(p, at, s, tile, chunk * CHUNK, my);
        }
        if (!ENDS) write_out(p, at, s, tile, z, my);
        UNROLL for (int t = 0; ENDS && t < TWINS; ++t) {
            UNROLL for (int i = 0; i < EACH; ++i) sums[t] += my.dt[t][i];
        }
    }
}

SCAN_KERNEL(BLOCKS) scan_forward(const Problem p) {
    SHARED_MEMORY(memory);
    Tiles tile = tiles(memory);
    Place at = place(p);
    run<false>(p, at, tile, 0);
    if (at.end == p.length) end_states(at, tile, p.last, false, p);
}

// From zero, for segments (see cuda_segments.cuh): ends (B, S, D, N), the end states, and sums (B, S, D), of step sizes.
SCAN_KERNEL(BLOCKS) scan_ends(const Problem p) {
    SHARED_MEMORY(memory);
    Tiles tile = tiles(memory);
    Place at = place(p);
    float sums[TWINS] = {};
    run<true>(p, at, tile, sums);
    end_states(at, tile, p.ends, true, p);
    for (int t = 0; t < TWINS; ++t) {
        for (int mask = 1; mask < LANES; mask *= 2) sums[t] += __shfl_xor_sync(FULL_WARP, sums[t], mask);
        if (at.lane == 0 && twin(at, t) < at.live) p.sums[by_segment(p, at, twin(at, t))] = sums[t];
    }
}
