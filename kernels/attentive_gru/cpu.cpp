// A GRU that attends before each step, in float32 on the CPU, forward and backward, behind a plain C interface.
//
// Lanes are features, whose number is a multiple of 16. A task is a few rows of the batch: rows share nothing but
// weights, whose gradients are products over all steps and left to the caller.
#include "../additive_row.h"
#include "../gru_cell.h"

namespace {

using gru::MOST_TOGETHER;
using lanes::W;
using parallel::Scratch;

// The arguments and results, mirrored field by field in cpu.py; contiguous, an absent mask is null. A = hidden units of
// the score, E = width of values. `gates` of the steps are those of reset, update and candidate.
struct Problem {
    int64_t rows, steps, keys, H, A, E, threads;
    const uint8_t* mask;                  // (rows, keys)
    const float *gates, *queries, *first; // (rows, steps, 3H), (rows, steps, A), (rows, H)
    float *key, *value;                   // (rows, keys, A), (rows, keys, E)
    const float* v;                       // (A)
    const float *by_context, *by_hidden;  // forward: (E, 3H), (H, 3H); backward: (3H, E), (3H, H)
    const float *by_query, *bias;         // forward: (H, A), (3H); backward: (A, H), absent
    float *outputs, *contexts, *weights;  // (rows, steps, H), (rows, steps, E), (rows, steps, keys)
    float* parts;                         // (rows, steps, 4H): see gru_cell.h
    // the backward pass alone
    const float *doutputs, *dcontexts, *dlast;  // as outputs, contexts, first
    float *dgates, *dhidden, *dcontext;         // (rows, steps, 3H), twice, (rows, steps, E): through each product
    float *dqueries, *dkey, *dv, *dfirst;       // as queries, key; (rows, A); as first

    int64_t together() const { return gru::rows_together(rows, threads); }
};

// Rows that advance together, and what each attends to.
class Group {
   protected:
    const Problem& p;
    const int64_t first;
    const int rows;

    Group(const Problem& problem, int64_t task)
        : p(problem), first(task * p.together()), rows(static_cast<int>(std::min(p.together(), p.rows - first))) {}

    int64_t step(int r, int64_t t) const { return (first + r) * p.steps + t; }
    const float* before(int r, int64_t t) const {
        return t == 0 ? p.first + (first + r) * p.H : p.outputs + step(r, t - 1) * p.H;
    }
    static additive::Vectors vectors(float* data, int64_t features) {
        return {data, features, static_cast<int>(features / W)};
    }
    additive::Source source(int r) const {
        const int64_t from = (first + r) * p.keys;
        const uint8_t* mask = p.mask ? p.mask + from : nullptr;
        return {vectors(p.key + from * p.A, p.A), vectors(p.value + from * p.E, p.E), p.v, mask, p.keys};
    }

    // For each row, a place of its own in an array of so many numbers per step.
    struct Places {
        float* of[MOST_TOGETHER];
    };
    Places at(float* array, int64_t t, int64_t numbers) const {
        Places places;
        for (int r = 0; r < rows; ++r) places.of[r] = array + step(r, t) * numbers;
        return places;
    }
    void accumulate(float* const* to, const float* const* x, const float* matrix, int64_t inner, int64_t count) const {
        gru::accumulate(rows, to, x, matrix, inner, count);
    }
};

class Forward : Group {
    std::vector<additive::Forward> attentions;
    float *queries[MOST_TOGETHER], *products[MOST_TOGETHER];
    const lanes::Exp2 exp2{};

   public:
    Forward(const Problem& problem, int64_t task, Scratch& scratch) : Group(problem, task) {
        for (int r = 0; r < rows; ++r) {
            attentions.emplace_back(source(r), scratch);
            queries[r] = additive::floats(scratch, p.A);
            products[r] = additive::floats(scratch, 3 * p.H);
        }
    }

    void run() {
        for (int64_t t = 0; t < p.steps; ++t) {
            const float* states[MOST_TOGETHER];
            for (int r = 0; r < rows; ++r) states[r] = before(r, t);
            const Places contexts = at(p.contexts, t, p.E), parts = at(p.parts, t, 4 * p.H);
            for (int r = 0; r < rows; ++r) {
                std::copy_n(p.queries + step(r, t) * p.A, p.A, queries[r]);
                std::copy_n(p.bias, 3 * p.H, products[r]);
                std::copy_n(p.gates + step(r, t) * 3 * p.H, 3 * p.H, parts.of[r]);
            }
            accumulate(queries, states, p.by_query, p.H, p.A);
            for (int r = 0; r < rows; ++r)
                attentions[r].attend(queries[r], p.weights + step(r, t) * p.keys, contexts.of[r]);
            accumulate(products, states, p.by_hidden, p.H, 3 * p.H);
            accumulate(parts.of, contexts.of, p.by_context, p.E, 3 * p.H);
            for (int r = 0; r < rows; ++r)
                gru::advance(
                    exp2, p.H, parts.of[r], products[r], states[r], parts.of[r], p.outputs + step(r, t) * p.H
                );
        }
    }
};

// `queries` are those of the attention here, whole.
class Backward : Group {
    std::vector<additive::Backward> attentions;
    float* dh[MOST_TOGETHER];

   public:
    Backward(const Problem& problem, int64_t task, Scratch& scratch) : Group(problem, task) {
        for (int r = 0; r < rows; ++r) {
            const int64_t row = first + r;
            const additive::Vectors dkey = vectors(p.dkey + row * p.keys * p.A, p.A);
            attentions.emplace_back(source(r), dkey, p.dv + row * p.A, scratch);
            dh[r] = additive::floats(scratch, p.H);
            std::copy_n(p.dlast + row * p.H, p.H, dh[r]);
        }
    }

    void run() {
        for (int64_t t = p.steps - 1; t >= 0; --t) {
            const Places dgates = at(p.dgates, t, 3 * p.H), dhidden = at(p.dhidden, t, 3 * p.H);
            const Places dcontext = at(p.dcontext, t, p.E), dqueries = at(p.dqueries, t, p.A);
            for (int r = 0; r < rows; ++r) {
                const int64_t i = step(r, t);
                gru::retreat(
                    p.H, p.parts + i * 4 * p.H, before(r, t), p.doutputs + i * p.H, dh[r], dgates.of[r], dhidden.of[r]
                );
                std::copy_n(p.dcontexts + i * p.E, p.E, dcontext.of[r]);
            }
            accumulate(dcontext.of, dgates.of, p.by_context, 3 * p.H, p.E);
            for (int r = 0; r < rows; ++r) {
                const int64_t i = step(r, t);
                attentions[r].attend(p.queries + i * p.A, p.weights + i * p.keys, dcontext.of[r], dqueries.of[r]);
            }
            accumulate(dh, dhidden.of, p.by_hidden, 3 * p.H, p.H);
            accumulate(dh, dqueries.of, p.by_query, p.A, p.H);
        }
        for (int r = 0; r < rows; ++r) {
            attentions[r].finish();
            std::copy_n(dh[r], p.H, p.dfirst + (first + r) * p.H);
        }
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
extern "C" int attentive_gru_forward(const Problem* p) { return run<Forward>(*p); }
extern "C" int attentive_gru_backward(const Problem* p) { return run<Backward>(*p); }
