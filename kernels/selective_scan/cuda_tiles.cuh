// Windows of time between global and shared memory. A tile is (CHANNELS, ROW) floats: element [channel][step].

struct Span {  // one window
    i64 start;
    int steps;  // of the segment; the others are padding
};

__device__ __forceinline__ Span span(const Place& at, i64 start) {
    Span s = {start, at.end - start < WINDOW ? (int)(at.end - start) : WINDOW};
    return s;
}

// How the elements of a tile are moved: four steps at once, four channels at once (both for whole tiles only), or one by
// one. The four elements that begin at (channel, step) are then (channel, step + k), or (channel + k, step).
enum Mode { STEPS, CHANNELS_AT_ONCE, SINGLE };

__device__ __forceinline__ int mode_of(const View& v, const Place& at, const Span& s) {
    bool whole = at.live == CHANNELS && s.steps == WINDOW && (CHANNELS >= 4 || v.mode == STEPS);
    return whole ? (int)v.mode : SINGLE;
}

template <int MODE>
__device__ __forceinline__ int tile_index(int channel, int step, int k) {
    return MODE == CHANNELS_AT_ONCE ? (channel + k) * ROW + step : channel * ROW + step + k;
}

// Calls body(channel, step) for every four elements of a tile that this thread has to move.
template <int MODE, class Body>
__device__ __forceinline__ void each_four(Body body) {
    const int across = CHANNELS >= 4 ? CHANNELS / 4 : 1;
    const int times = MODE == SINGLE ? 1 : 2;
    UNROLL_TIMES for (int i = threadIdx.x; i < CHANNELS * WINDOW / 4; i += THREADS) {
        if (MODE == CHANNELS_AT_ONCE) body(4 * (i % across), i / across);
        else body(i / (WINDOW / 4), 4 * (i % (WINDOW / 4)));
    }
}

// Calls f(&tile[c][t], what the view holds there, c, whether there is such an element; if not, it reads 0).
template <int MODE, class F>
__device__ __forceinline__ void read_in_mode(const View& v, const Place& at, const Span& s, float* tile, F f) {
    const char* base = v.data + (at.row * v.row + at.first * v.channel + s.start * v.step) * SIZE;
    each_four<MODE>([&](int channel, int step) {
        float x[4];
        i64 offset = channel * v.channel + step * v.step;
        if (MODE != SINGLE) load4(base, offset, x);
        UNROLL for (int k = 0; k < 4; ++k) {
            bool there = MODE != SINGLE || (channel < at.live && step + k < s.steps);
            if (MODE == SINGLE) x[k] = there ? load(base, offset + k * v.step) : 0.0f;
            f(tile + tile_index<MODE>(channel, step, k), x[k], MODE == CHANNELS_AT_ONCE ? channel + k : channel, there);
        }
    });
}

template <class F>
__device__ __forceinline__ void read_tile(const View& v, const Place& at, const Span& s, float* tile, F f) {
    int mode = mode_of(v, at, s);
    if (mode == STEPS) read_in_mode<STEPS>(v, at, s, tile, f);
    else if (mode == CHANNELS_AT_ONCE) read_in_mode<CHANNELS_AT_ONCE>(v, at, s, tile, f);
    else read_in_mode<SINGLE>(v, at, s, tile, f);
}

template <int MODE>
__device__ __forceinline__ void write_in_mode(const View& v, const Place& at, const Span& s, const float* tile) {
    char* base = v.data + (at.row * v.row + at.first * v.channel + s.start * v.step) * SIZE;
    each_four<MODE>([&](int channel, int step) {
        float x[4];
        i64 offset = channel * v.channel + step * v.step;
        UNROLL for (int k = 0; k < 4; ++k) x[k] = tile[tile_index<MODE>(channel, step, k)];
        if (MODE != SINGLE) {
            store4(base, offset, x);
        } else {
            UNROLL for (int k = 0; k < 4; ++k)
                if (channel < at.live && step + k < s.steps) store(base, offset + k * v.step, x[k]);
        }
    });
}

__device__ __forceinline__ void write_tile(const View& v, const Place& at, const Span& s, const float* tile) {
    int mode = mode_of(v, at, s);
    if (mode == STEPS) write_in_mode<STEPS>(v, at, s, tile);
    else if (mode == CHANNELS_AT_ONCE) write_in_mode<CHANNELS_AT_ONCE>(v, at, s, tile);
    else write_in_mode<SINGLE>(v, at, s, tile);
}

// A plain copy of a view; 0 where it has nothing.
__device__ __forceinline__ void read_plain(const View& v, const Place& at, const Span& s, float* tile) {
    read_tile(v, at, s, tile, [](float* to, float x, int, bool) { *to = x; });
}

// Step sizes, and with `slope` their derivative by delta. Both exactly 0 where there is no step: what flows backwards
// through padding must not reach the gradient of the bias.
template <bool SLOPE>
__device__ __forceinline__ void read_steps(const Problem& p, const Place& at, const Span& s, float* tile, float* slope) {
    bool soft = p.softplus != 0;
    read_tile(p.delta, at, s, tile, [&](float* to, float x, int channel, bool there) {
        if (there && p.bias != 0) x += p.bias[at.first + channel];
        if (SLOPE) slope[to - tile] = !there ? 0.0f : soft ? sigmoid(x) : 1.0f;
        *to = !there ? 0.0f : soft ? softplus(x) : x;
    });
}

// A variable matrix's window, as float [step][copy][PADDED]. Copy q holds in place n the state n ^ (q * STEP): a thread
// whose states are turned by q * STEP reads four of them at once.
template <int COUNT, int STEP, int PITCH>
__device__ __forceinline__ void read_matrix(const Matrix& m, const Place& at, const Span& s, float* tile) {
    const char* base = m.data + (at.row * m.row + at.group * m.group + s.start * m.step) * SIZE;
    for (int i = threadIdx.x; i < WINDOW * PADDED; i += THREADS) {
        int n = i % 4 + i / (4 * WINDOW) * 4, t = i / 4 % WINDOW;
        float x = n < STATES && t < s.steps ? load(base, n * m.state + t * m.step) : 0.0f;
        UNROLL for (int q = 0; q < COUNT; ++q) tile[t * PITCH + q * PADDED + (n ^ q * STEP)] = x;
    }
}

__device__ __forceinline__ void four(const float* tile, float* x) {
    float4 v = *(const float4*)tile;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
}

__device__ __forceinline__ void read_share(const float* tile, float* x) {
    UNROLL for (int j = 0; j < NS; j += 4) four(tile + j, x + j);
}
