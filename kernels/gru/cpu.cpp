// The recurrence of a GRU in float32 on the CPU, forward and backward, behind a plain C interface.
//
// A task is a few rows of the batch. Rows share nothing but weights, whose gradients are products over all steps and left
// to the caller.
#include "../gru_cell.h"

namespace {

using gru::MOST_TOGETHER;
using parallel::Scratch;

// The arguments and results, mirrored field by field in cpu.py; contiguous. H is a multiple of 16; `gates` are those of
// reset, update and candidate.
struct Problem {
    int64_t rows, steps, H, threads;
    const float *gates, *first, *matrix, *bias;  // (rows, steps, 3H), (rows, H), forward (H, 3H) or backward (3H, H), (3H)
    float *outputs, *parts;                      // (rows, steps, H), (rows, steps, 4H): see gru_cell.h
    // the backward pass alone
    const float* doutputs;
    float *dgates, *dproduct, *dfirst;  // (rows, steps, 3H), twice, (rows, H)

    int64_t together() const { return gru::rows_together(rows, threads); }
};

// Rows that advance together, with room for `width` numbers each.
class Group {
   protected:
    const Problem& p;
    const int64_t first;
    const int rows;
    float* room[MOST_TOGETHER];

    int64_t step(int r, int64_t t) const { return (first + r) * p.steps + t; }
    const float* before(int r, int64_t t) const {
        return t == 0 ? p.first + (first + r) * p.H : p.outputs + step(r, t - 1) * p.H;
    }

   public:
    Group(const Problem& problem, int64_t task, int64_t width, Scratch& scratch)
        : p(problem), first(task * p.together()), rows(static_cast<int>(std::min(p.together(), p.rows - first))) {
        for (float*& numbers : room) numbers = reinterpret_cast<float*>(scratch.take(width / lanes::W));
    }
};

class Forward : Group {
    const lanes::Exp2 exp2{};

   public:
    Forward(const Problem& problem, int64_t task, Scratch& scratch) : Group(problem, task, 3 * problem.H, scratch) {}

    void run() {
        const float* states[MOST_TOGETHER];
        for (int64_t t = 0; t < p.steps; ++t) {
            for (int r = 0; r < rows; ++r) {
                std::copy_n(p.bias, 3 * p.H, room[r]);
                states[r] = before(r, t);
            }
            gru::accumulate(rows, room, states, p.matrix, p.H, 3 * p.H);
            for (int r = 0; r < rows; ++r) {
                const int64_t i = step(r, t);
                gru::advance(
                    exp2, p.H, p.gates + i * 3 * p.H, room[r], states[r], p.parts + i * 4 * p.H, p.outputs + i * p.H
                );
            }
        }
    }
};

class Backward : Group {
   public:
    Backward(const Problem& problem, int64_t task, Scratch& scratch) : Group(problem, task, problem.H, scratch) {}

    void run() {
        const float* products[MOST_TOGETHER];
        for (int r = 0; r < rows; ++r) std::fill_n(room[r], p.H, 0.0f);
        for (int64_t t = p.steps - 1; t >= 0; --t) {
            for (int r = 0; r < rows; ++r) {
                const int64_t i = step(r, t);
                float* dproduct = p.dproduct + i * 3 * p.H;
                products[r] = dproduct;
                gru::retreat(
                    p.H, p.parts + i * 4 * p.H, before(r, t), p.doutputs + i * p.H, room[r], p.dgates + i * 3 * p.H,
                    dproduct
                );
            }
            gru::accumulate(rows, room, products, p.matrix, 3 * p.H, p.H);
        }
        for (int r = 0; r < rows; ++r) std::copy_n(room[r], p.H, p.dfirst + (first + r) * p.H);
    }
};

template <class Pass>
int run(const Problem& p) {
    const int64_t tasks = (p.rows + p.together() - 1) / p.together();
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, task, scratch).run(); };
    return parallel::run(tasks, p.threads, work) ? 0 : 1;
}

}  // namespace

// Both return 0, or 1 if there was not enough memory.
extern "C" int gru_forward(const Problem* p) { return run<Forward>(*p); }
extern "C" int gru_backward(const Problem* p) { return run<Backward>(*p); }
