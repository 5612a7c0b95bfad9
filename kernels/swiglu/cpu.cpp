// SwiGLU's gate in float32 on the CPU, forward and backward, behind a plain C interface. Lanes are features; a task is
// a few rows.
#include "../parallel.h"

namespace swiglu {

using lanes::Lanes;
using lanes::W;

constexpr int64_t ROWS = 64;  // of a task

// `count` numbers, at most W.
inline Lanes load(const float* from, int64_t count) {
    if (count == W) return lanes::load(from);
    Lanes value{};
    std::memcpy(&value, from, count * sizeof(float));
    return value;
}

inline void store(float* to, Lanes value, int64_t count) {
    if (count == W) lanes::store(to, value);
    else std::memcpy(to, &value, count * sizeof(float));
}

// The arguments and results, mirrored field by field in cpu.py; contiguous.
struct Forward {
    int64_t rows, features, threads;
    const float* x;  // (rows, 2 features): gate, up
    float* out;      // (rows, features)

    void run(int64_t row, int64_t i, int64_t count, Lanes gate, Lanes up, Lanes sigmoid) const {
        store(out + row * features + i, gate * sigmoid * up, count);
    }
};

struct Backward {
    int64_t rows, features, threads;
    const float *x, *dout;
    float* dx;

    void run(int64_t row, int64_t i, int64_t count, Lanes gate, Lanes up, Lanes sigmoid) const {
        const Lanes d = load(dout + row * features + i, count), silu = gate * sigmoid;
        float* to = dx + 2 * row * features + i;
        store(to, d * up * (sigmoid + silu * (1.0f - sigmoid)), count);
        store(to + features, d * silu, count);
    }
};

template <class Pass>
int run(const Pass& p) {
    const auto work = [&](int64_t task, parallel::Scratch&) {
        const lanes::Exp2 exp2;
        for (int64_t row = task * ROWS; row < std::min(p.rows, (task + 1) * ROWS); ++row)
            for (int64_t i = 0; i < p.features; i += W) {
                const int64_t count = std::min<int64_t>(W, p.features - i);
                const float* from = p.x + 2 * row * p.features + i;
                const Lanes gate = load(from, count), up = load(from + p.features, count);
                p.run(row, i, count, gate, up, lanes::sigmoid(exp2, gate));
            }
    };
    return parallel::run((p.rows + ROWS - 1) / ROWS, p.threads, work) ? 0 : 1;
}

}  // namespace swiglu

// Both return 0, or 1 if there was not enough memory.
extern "C" int swiglu_forward(const swiglu::Forward* p) { return swiglu::run(*p); }
extern "C" int swiglu_backward(const swiglu::Backward* p) { return swiglu::run(*p); }
