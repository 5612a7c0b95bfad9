// Rectangles of global memory, rows (channels or states) by steps, moved four elements at a time.

struct Span {  // steps that are worked on together
    i64 start;
    int steps;  // of the segment; the others are padding
};

__device__ __forceinline__ Span span(const Place& at, i64 start, int length) {
    Span s = {start, at.end - start < length ? (int)(at.end - start) : length};
    return s;
}

struct Area {  // rows from the block's first, steps from the span's first
    char* data;
    i64 row, step;
    int rows, steps;  // that there are; what lies behind reads 0 and is not written
    bool whole;       // all are there that are asked for, and four elements can be moved at once
};

__device__ __forceinline__ Area area(const View& v, const Place& at, const Span& s, int steps) {
    bool whole = v.together != 0 && at.live == CHANNELS && s.steps == steps;
    Area a = {v.data + (at.row * v.row + at.first * v.channel + s.start * v.step) * SIZE,
              v.channel, v.step, at.live, s.steps, whole};
    return a;
}

// Of so many states of a variable matrix, from `first` on.
__device__ __forceinline__ Area area(const Matrix& m, const Place& at, const Span& s, int steps, int first, int states) {
    bool whole = m.together != 0 && first + states <= STATES && s.steps == steps;
    Area a = {m.data + (at.row * m.row + at.group * m.group + first * m.state + s.start * m.step) * SIZE,
              m.state, m.step, STATES - first, s.steps, whole};
    return a;
}

struct Quad {  // the first of four elements, which follow in time or, across, in rows
    int row, step;
};

template <bool OVER_ROWS>
__device__ __forceinline__ Quad quad(int i, int rows, int steps) {
    Quad q = {i / (steps / 4), 4 * (i % (steps / 4))};
    Quad across = {4 * (i % (rows / 4)), i / (rows / 4)};
    return OVER_ROWS ? across : q;
}

template <bool OVER_ROWS>
__device__ __forceinline__ bool inside(const Area& a, const Quad& q, int k) {
    return OVER_ROWS ? q.row + k < a.rows && q.step < a.steps : q.row < a.rows && q.step + k < a.steps;
}

// Within a whole area offsets have 32 bits. The rest is rare, and kept out of the way.
__device__ __forceinline__ char* of_whole(const Area& a, const Quad& q) {
    return a.data + (q.row * (int)a.row + q.step * (int)a.step) * SIZE;
}

template <bool OVER_ROWS>
__device__ __forceinline__ Raw fetch(const Area& a, const Quad& q) {
    if (__builtin_expect(a.whole, 1)) return load4(of_whole(a, q));
    i64 offset = q.row * a.row + q.step * a.step, hop = OVER_ROWS ? a.row : a.step;
    Raw raw;
    UNROLL for (int k = 0; k < 4; ++k)
        put(raw, k, inside<OVER_ROWS>(a, q, k) ? bits_of(a.data, offset + k * hop) : 0u);
    return raw;
}

template <bool OVER_ROWS>
__device__ __forceinline__ void write(const Area& a, const Quad& q, const Raw& raw) {
    if (__builtin_expect(a.whole, 1)) {
        store4(of_whole(a, q), raw);
        return;
    }
    i64 offset = q.row * a.row + q.step * a.step, hop = OVER_ROWS ? a.row : a.step;
    UNROLL for (int k = 0; k < 4; ++k)
        if (inside<OVER_ROWS>(a, q, k)) store_bits(a.data, offset + k * hop, element(raw, k));
}

// A constant matrix's value for a channel of the block.
__device__ __forceinline__ float constant(const Matrix& m, const Place& at, int channel, int n) {
    return channel < at.live && n < STATES ? load(m.data, (at.first + channel) * m.group + n * m.state) : 0.0f;
}
