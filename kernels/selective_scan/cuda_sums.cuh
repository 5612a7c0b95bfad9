// The gradients that are sums over blocks: of B and C over the parts of a group's channels, of what belongs to channels
// over rows and segments. One thread per number, always in the same order.

__device__ __forceinline__ float sum_of(const float* from, i64 count, i64 pitch) {
    float sum = 0.0f;
    UNROLL4 for (i64 k = 0; k < count; ++k) sum += from[k * pitch];
    return sum;
}

// Number i of a variable matrix's gradient over this launch's steps, (rows, groups, steps, N).
__device__ __forceinline__ void sum_matrix(const Problem& p, const float* parts, const Matrix& to, i64 i, i64 size) {
    i64 steps = p.end - p.begin, n = i % STATES, t = i / STATES % steps, group = i / STATES / steps % p.groups;
    i64 row = i / STATES / steps / p.groups;
    i64 offset = row * to.row + group * to.group + n * to.state + (p.begin + t) * to.step;
    store_bits(to.data, offset, narrow(sum_of(parts + i, p.parts, size)));
}

// Number i of (..., D, N) or (..., D); p.more: on top of what later steps gave.
__device__ __forceinline__ void sum_channels(const Problem& p, const float* parts, float* to, i64 i, i64 size) {
    float sum = sum_of(parts + i, p.rows * p.segments, size);
    to[i] = p.more ? to[i] + sum : sum;
}

SCAN_KERNEL(1) scan_sums(const Problem p) {
    i64 i = (i64)blockIdx.x * THREADS + threadIdx.x, channels = p.channels, states = channels * STATES;
    i64 matrix = p.rows * p.groups * (p.end - p.begin) * STATES;
    i64 of_b = CONST_B ? states : matrix, of_c = CONST_C ? states : matrix;
    if (i < of_b) {
        if (CONST_B) sum_channels(p, p.dB, p.into_B, i, states);
        else sum_matrix(p, p.dB, p.grad_B, i, matrix);
    } else if ((i -= of_b) < of_c) {
        if (CONST_C) sum_channels(p, p.dC, p.into_C, i, states);
        else sum_matrix(p, p.dC, p.grad_C, i, matrix);
    } else if ((i -= of_c) < states) {
        sum_channels(p, p.dA, p.into_A, i, states);
    } else if ((i -= states) < channels) {
        sum_channels(p, p.dD, p.into_D, i, channels);
    } else if ((i -= channels) < channels) {
        sum_channels(p, p.dbias, p.into_bias, i, channels);
    }
}
