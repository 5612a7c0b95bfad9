// The rotation of rotary positions in float32 on the CPU, behind a plain C interface. Lanes are features; a task is a
// few positions of a row.
#include "../parallel.h"

namespace rotary {

using lanes::Lanes;
using lanes::W;

constexpr int64_t POSITIONS = 64;  // of a task

// Vectors (rows, heads, positions) of contiguous features.
struct Vectors {
    float* data;
    int64_t row, head, position;

    float* at(int64_t r, int64_t h, int64_t t) const { return data + r * row + h * head + t * position; }
};

// The arguments and results, mirrored field by field in cpu.py.
struct Problem {
    int64_t rows, heads, positions, features, threads, back, per_row;
    const float *cos, *sin;  // (rows or 1, positions, features / 2), contiguous
    Vectors x, out;

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

}  // namespace rotary

// Returns 0, or 1 if there was not enough memory.
extern "C" int rotary_turn(const rotary::Problem* p) {
    const auto work = [&](int64_t task, parallel::Scratch&) { p->run(task); };
    return parallel::run(p->rows * p->blocks(), p->threads, work) ? 0 : 1;
}
