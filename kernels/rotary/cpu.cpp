// The rotation of rotary positions in float32 on the CPU, as an operator of torch. Lanes are features; a task is a few
// positions of a row.
#include "../operators.h"

namespace rotary {

using lanes::Lanes;
using lanes::W;
using operators::Tensor;

constexpr int64_t POSITIONS = 64;  // of a task

// Vectors (rows, heads, positions) of contiguous features.
struct Vectors {
    float* data;
    int64_t row, head, position;

    explicit Vectors(const Tensor& tensor) {
        const int64_t* strides = tensor.strides();
        if (type(tensor) != tiles::TypedView::FLOAT || strides[3] != 1)
            throw std::invalid_argument("expected vectors of float32, of contiguous features");
        data = static_cast<float*>(tensor.data()), row = strides[0], head = strides[1], position = strides[2];
    }

    float* at(int64_t r, int64_t h, int64_t t) const { return data + r * row + h * head + t * position; }
};

struct Problem {
    const int64_t rows, heads, positions, features;
    const bool back, per_row;
    const float *cos, *sin;  // (rows or 1, positions, features / 2), contiguous
    const Vectors x, out;

    Problem(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back, const Tensor& out)
        : rows(x.size(0)), heads(x.size(1)), positions(x.size(2)), features(x.size(3)), back(back),
          per_row(cos.size(0) > 1), cos(floats(cos)), sin(floats(sin)), x(x), out(out) {}

    int64_t blocks() const { return (positions + POSITIONS - 1) / POSITIONS; }

    void run(int64_t task) const {
        const int64_t row = task / blocks(), first = task % blocks() * POSITIONS;
        for (int64_t t = first; t < std::min(positions, first + POSITIONS); ++t)
            for (int64_t h = 0; h < heads; ++h) turn(row, h, t);
    }

   private:
    void turn(int64_t row, int64_t head, int64_t t) const {
        const int64_t half = features / 2, angle = ((per_row ? row : 0) * positions + t) * half;
        const float *from = x.at(row, head, t), sign = back ? -1.0f : 1.0f;
        float* to = out.at(row, head, t);
        int64_t i = 0;
        for (; i + W <= half; i += W) {
            const Lanes c = lanes::load(cos + angle + i), s = sign * lanes::load(sin + angle + i);
            const Lanes a = lanes::load(from + i), b = lanes::load(from + half + i);
            lanes::store(to + i, a * c - b * s);
            lanes::store(to + half + i, b * c + a * s);
        }
        for (; i < half; ++i) {
            const float c = cos[angle + i], s = sign * sin[angle + i], a = from[i], b = from[half + i];
            to[i] = a * c - b * s;
            to[half + i] = b * c + a * s;
        }
    }
};

// As turn in cpu.py: heads side by side, as the products before and behind have them.
std::tuple<Tensor> turn(const Tensor& x, const Tensor& cos, const Tensor& sin, bool back) {
    const int64_t heads = x.size(1), positions = x.size(2), features = x.size(3);
    const int64_t strides[] = {positions * heads * features, features, heads * features, 1};
    Tensor out = operators::empty(4, x.sizes(), strides, x.dtype());
    const Problem p(x, cos, sin, back, out);
    operators::run(p.rows * p.blocks(), operators::threads(8 * x.numel()),
                   [&](int64_t task, parallel::Scratch&) { p.run(task); });
    return {std::move(out)};
}

const auto registered = operators::Registration().add<turn>("rotary_cpu");

}  // namespace rotary
