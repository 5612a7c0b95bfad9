// SwiGLU's gate in float32 on the CPU, forward and backward, as operators of torch. Lanes are features; a task is a few
// rows.
#include "../functions.h"
#include "../operators.h"

namespace swiglu {

using lanes::Lanes;
using lanes::W;
using operators::Tensor;

constexpr int64_t ROWS = 64;  // of a task
const lanes::Exp2 exp2;

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

// Contiguous tensors.
struct Problem {
    int64_t features, rows, threads;
    const float* x;  // (rows, 2 features): gate, up

    explicit Problem(const Tensor& x)
        : features(x.size(-1) / 2), rows(features ? x.numel() / features / 2 : 0),
          threads(operators::threads(16 * x.numel())), x(floats(x)) {}
};

struct Forward : Problem {
    float* out;  // (rows, features)

    Forward(const Tensor& x, const Tensor& out) : Problem(x), out(floats(out)) {}

    void run(int64_t row, int64_t i, int64_t count, Lanes gate, Lanes up, Lanes sigmoid) const {
        store(out + row * features + i, gate * sigmoid * up, count);
    }
};

struct Backward : Problem {
    const float* dout;
    float* dx;

    Backward(const Tensor& dout, const Tensor& x, const Tensor& dx) : Problem(x), dout(floats(dout)), dx(floats(dx)) {}

    void run(int64_t row, int64_t i, int64_t count, Lanes gate, Lanes up, Lanes sigmoid) const {
        const Lanes d = load(dout + row * features + i, count), silu = gate * sigmoid;
        float* to = dx + 2 * row * features + i;
        store(to, d * up * (sigmoid + silu * (1.0f - sigmoid)), count);
        store(to + features, d * silu, count);
    }
};

template <class Pass>
void run(const Pass& p) {
    operators::run((p.rows + ROWS - 1) / ROWS, p.threads, [&](int64_t task, parallel::Scratch&) {
        const lanes::Exp2 power = exp2;
        for (int64_t row = task * ROWS; row < std::min(p.rows, (task + 1) * ROWS); ++row)
            for (int64_t i = 0; i < p.features; i += W) {
                const int64_t count = std::min<int64_t>(W, p.features - i);
                const float* from = p.x + 2 * row * p.features + i;
                const Lanes gate = load(from, count), up = load(from + p.features, count);
                p.run(row, i, count, gate, up, lanes::sigmoid(power, gate));
            }
    });
}

// As gate in cpu.py.
std::tuple<Tensor> forward(const Tensor& x) {
    std::vector<int64_t> sizes(x.sizes(), x.sizes() + x.dim());
    sizes.back() /= 2;
    Tensor out = operators::empty(sizes);
    run(Forward(x, out));
    return {std::move(out)};
}

// As gate_backward in cpu.py.
std::tuple<Tensor> backward(const Tensor& dout, const Tensor& x) {
    Tensor dx = empty_like(x);
    run(Backward(dout, x, dx));
    return {std::move(dx)};
}

const auto registered = operators::Registration().add<forward>("swiglu_cpu").add<backward>("swiglu_cpu_backward");

}  // namespace swiglu
