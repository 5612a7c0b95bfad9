// The norm by root mean square in float32 on the CPU, forward and backward, as operators of torch. Lanes are features; a
// task is ROWS vectors.
#include <cmath>

#include "../operators.h"

namespace rms_norm {

using lanes::Lanes;
using lanes::W;
using operators::Tensor;

inline float sum(Lanes terms) {
    float total = 0.0f;
    for (int i = 0; i < W; ++i) total += terms[i];
    return total;
}

// Contiguous tensors.
struct Problem {
    int64_t features, rows, threads;
    double eps;
    const float *x, *weight;  // (rows, features), (features)

    Problem(const Tensor& x, const Tensor& weight, double eps)
        : features(weight.size(0)), rows(x.numel() / features), threads(operators::threads(8 * x.numel())), eps(eps),
          x(floats(x)), weight(floats(weight)) {}

    int64_t tasks() const { return (rows + ROWS - 1) / ROWS; }
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

    Forward(const Problem& p, const Tensor& out) : Problem(p), out(floats(out)) {}

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

    Backward(const Problem& p, const Tensor& dout, const Tensor& dx, const Tensor& dweight)
        : Problem(p), dout(floats(dout)), dx(floats(dx)), dweight(floats(dweight)) {}

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
void run(const Pass& p) {
    operators::run(p.tasks(), p.threads, [&](int64_t task, parallel::Scratch&) {
        p.begin(task);
        for (int64_t row = task * ROWS; row < std::min<int64_t>(p.rows, (task + 1) * ROWS); ++row) p.run(task, row);
    });
}

// As normalize in cpu.py.
std::tuple<Tensor> forward(const Tensor& x, const Tensor& weight, double eps) {
    Tensor out = empty_like(x);
    run(Forward(Problem(x, weight, eps), out));
    return {std::move(out)};
}

// As normalize_backward in cpu.py.
std::tuple<Tensor, Tensor> backward(const Tensor& dout, const Tensor& x, const Tensor& weight, double eps) {
    const Problem p(x, weight, eps);
    Tensor dx = empty_like(x), dweight = operators::empty({p.tasks(), p.features});
    run(Backward(p, dout, dx, dweight));
    return {std::move(dx), std::move(dweight)};
}

const auto registered =
    operators::Registration().add<forward>("rms_norm_cpu").add<backward>("rms_norm_cpu_backward");

}  // namespace rms_norm
