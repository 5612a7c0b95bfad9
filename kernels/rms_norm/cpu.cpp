// The norm by root mean square in float32 on the CPU, forward and backward, behind a plain C interface. Lanes are
// features; a task is ROWS vectors.
#include <cmath>

#include "../parallel.h"

namespace rms_norm {

using lanes::Lanes;
using lanes::W;

inline float sum(Lanes terms) {
    float total = 0.0f;
    for (int i = 0; i < W; ++i) total += terms[i];
    return total;
}

// The arguments and results, mirrored field by field in cpu.py; contiguous.
struct Problem {
    int64_t rows, features, threads;
    double eps;
    const float *x, *weight;  // (rows, features), (features)

    int64_t whole() const { return features / W * W; }  // features in full lanes

    // What vector x is multiplied by.
    float factor(const float* x) const {
        Lanes squares{};
        for (int64_t i = 0; i < whole(); i += W) squares += lanes::load(x + i) * lanes::load(x + i);
        float total = sum(squares);
        for (int64_t i = whole(); i < features; ++i) total += x[i] * x[i];
        return 1.0f / std::sqrt(total / static_cast<float>(features) + static_cast<float>(eps));
    }
};

struct Forward : Problem {
    float* out;

    void begin(int64_t) const {}

    void run(int64_t, int64_t row) const {
        const float *from = x + row * features, by = factor(from);
        float* to = out + row * features;
        for (int64_t i = 0; i < whole(); i += W)
            lanes::store(to + i, by * lanes::load(from + i) * lanes::load(weight + i));
        for (int64_t i = whole(); i < features; ++i) to[i] = by * from[i] * weight[i];
    }
};

// With r the factor and g = weight dout, the gradient of x is r (g - x r^2 mean(g x)).
struct Backward : Problem {
    const float* dout;
    float *dx, *dweight;  // (rows, features), (tasks, features)

    void begin(int64_t task) const { std::fill_n(dweight + task * features, features, 0.0f); }

    void run(int64_t task, int64_t row) const {
        const float *from = x + row * features, *d = dout + row * features, by = factor(from);
        float *to = dx + row * features, *dw = dweight + task * features;
        Lanes products{};
        for (int64_t i = 0; i < whole(); i += W) {
            const Lanes term = lanes::load(d + i) * lanes::load(from + i);
            products += term * lanes::load(weight + i);
            lanes::store(dw + i, lanes::load(dw + i) + by * term);
        }
        float total = sum(products);
        for (int64_t i = whole(); i < features; ++i) {
            total += d[i] * from[i] * weight[i];
            dw[i] += by * d[i] * from[i];
        }
        const float mean = by * by * total / static_cast<float>(features);
        for (int64_t i = 0; i < whole(); i += W)
            lanes::store(to + i, by * (lanes::load(d + i) * lanes::load(weight + i) - mean * lanes::load(from + i)));
        for (int64_t i = whole(); i < features; ++i) to[i] = by * (d[i] * weight[i] - mean * from[i]);
    }
};

template <class Pass>
int run(const Pass& p) {
    const auto work = [&](int64_t task, parallel::Scratch&) {
        p.begin(task);
        for (int64_t row = task * ROWS; row < std::min<int64_t>(p.rows, (task + 1) * ROWS); ++row) p.run(task, row);
    };
    return parallel::run((p.rows + ROWS - 1) / ROWS, p.threads, work) ? 0 : 1;
}

}  // namespace rms_norm

// Both return 0, or 1 if there was not enough memory.
extern "C" int rms_norm_forward(const rms_norm::Forward* p) { return rms_norm::run(*p); }
extern "C" int rms_norm_backward(const rms_norm::Backward* p) { return rms_norm::run(*p); }
