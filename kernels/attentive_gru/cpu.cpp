// A GRU that attends before each step, in float32 on the CPU, forward and backward, behind a plain C interface.
//
// Lanes are features, whose number is a multiple of 16. A task is a row of the batch: rows share nothing but weights,
// whose gradients are products over all steps and left to the caller.
#include <cmath>

#include "../parallel.h"

namespace recurrent {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;

// The arguments and results, mirrored field by field in cpu.py; contiguous, an absent mask is null. A = hidden units of
// the score, E = width of values. `gates` of the steps are those of reset, update and candidate.
struct Problem {
    int64_t rows, steps, keys, H, A, E, threads;
    const uint8_t* mask;                  // (rows, keys)
    const float *gates, *queries, *first; // (rows, steps, 3H), (rows, steps, A), (rows, H)
    const float *key, *value, *v;         // (rows, keys, A), (rows, keys, E), (A)
    const float *by_context, *by_hidden;  // forward: (E, 3H), (H, 3H); backward: (3H, E), (3H, H)
    const float *by_query, *bias;         // forward: (H, A), (3H); backward: (A, H), absent
    float *outputs, *contexts, *weights;  // (rows, steps, H), (rows, steps, E), (rows, steps, keys)
    float* parts;                         // (rows, steps, 4H): reset, update, candidate, what reset multiplies
    // the backward pass alone
    const float *doutputs, *dcontexts, *dlast;  // as outputs, contexts, first
    float *dgates, *dhidden, *dcontext;         // (rows, steps, 3H), twice, (rows, steps, E): through each product
    float *dqueries, *dkey, *dv, *dfirst;       // as queries, key; (rows, A); as first
};

inline Lanes at(const float* from, int64_t i) { return lanes::load(from + i * W); }
inline void put(float* to, int64_t i, Lanes value) { lanes::store(to + i * W, value); }
inline void add(float* to, int64_t i, Lanes value) { put(to, i, at(to, i) + value); }

// to (count) += x (rows) times matrix (rows, count), eight vectors of `to` at a time in registers.
inline void accumulate_few(float* to, const float* x, const float* matrix, int64_t rows, int64_t count) {
    constexpr int BLOCK = 8;
    const int64_t vectors = count / W;
    int64_t i = 0;
    for (; i + BLOCK <= vectors; i += BLOCK) {
        Lanes sums[BLOCK];
        LANES_UNROLL
        for (int k = 0; k < BLOCK; ++k) sums[k] = Lanes{};
        for (int64_t j = 0; j < rows; ++j) {
            LANES_UNROLL
            for (int k = 0; k < BLOCK; ++k) sums[k] += x[j] * at(matrix + j * count, i + k);
        }
        LANES_UNROLL
        for (int k = 0; k < BLOCK; ++k) add(to, i + k, sums[k]);
    }
    for (; i < vectors; ++i) {
        Lanes sum{};
        for (int64_t j = 0; j < rows; ++j) sum += x[j] * at(matrix + j * count, i);
        add(to, i, sum);
    }
}

// The same of many rows: sums of sums, as one long sum would lose digits.
inline void accumulate(float* to, const float* x, const float* matrix, int64_t rows, int64_t count) {
    constexpr int64_t FEW = 64;
    for (int64_t from = 0; from < rows; from += FEW)
        accumulate_few(to, x + from, matrix + from * count, std::min(FEW, rows - from), count);
}

// One row, with room for numbers per key and per feature.
class Row {
   protected:
    const Problem& p;
    const int64_t row;
    const float *key, *value;
    Lanes* terms;  // [key], whose lanes are yet to be added up
    float *by_key, *query, *product;
    const lanes::Exp2 exp2{};

    static float* floats(Scratch& scratch, int64_t count) {
        return reinterpret_cast<float*>(scratch.take((count + W - 1) / W));
    }

    bool real(int64_t s) const { return !p.mask || p.mask[row * p.keys + s]; }
    int64_t step(int64_t t) const { return row * p.steps + t; }
    const float* hidden_before(int64_t t) const {
        return t == 0 ? p.first + row * p.H : p.outputs + step(t - 1) * p.H;
    }
    void add_up_terms() {
        for (int64_t s = 0; s < p.keys; s += W) lanes::store(by_key + s, lanes::sum_each(terms + s));
    }

   public:
    Row(const Problem& problem, int64_t task, Scratch& s)
        : p(problem), row(task), key(p.key + row * p.keys * p.A), value(p.value + row * p.keys * p.E),
          terms(s.take(p.keys + W)), by_key(floats(s, p.keys + W)), query(floats(s, p.A)), product(floats(s, 3 * p.H)) {
    }
};

class Forward : public Row {
   public:
    using Row::Row;

    void run() {
        for (int64_t t = 0; t < p.steps; ++t) {
            attend(t);
            advance(t);
        }
    }

   private:
    void attend(int64_t t) {
        float *context = p.contexts + step(t) * p.E, *weights = p.weights + step(t) * p.keys;
        std::copy_n(p.queries + step(t) * p.A, p.A, query);
        accumulate(query, hidden_before(t), p.by_query, p.H, p.A);
        for (int64_t s = 0; s < p.keys; ++s) {
            Lanes sum{};
            for (int64_t i = 0; i < p.A / W; ++i) sum += at(p.v, i) * lanes::tanh(at(query, i) + at(key + s * p.A, i));
            terms[s] = sum;
        }
        add_up_terms();
        weigh(weights);
        std::fill_n(context, p.E, 0.0f);
        if (p.mask) masked_sum(context, weights);
        else accumulate(context, weights, value, p.keys, p.E);
    }

    // What masked keys hold may be anything: they are left out, not multiplied by 0.
    void masked_sum(float* context, const float* weights) const {
        for (int64_t s = 0; s < p.keys; ++s)
            for (int64_t i = 0; real(s) && i < p.E / W; ++i) add(context, i, weights[s] * at(value + s * p.E, i));
    }

    // The softmax of by_key over the real keys; all 0 where there is none.
    void weigh(float* weights) {
        float highest = -INFINITY, total = 0.0f;
        for (int64_t s = 0; s < p.keys; ++s)
            if (real(s)) highest = std::max(highest, by_key[s]);
        for (int64_t s = 0; s < p.keys; s += W)
            lanes::store(by_key + s, lanes::exp_negative(exp2, lanes::load(by_key + s) - highest));
        for (int64_t s = 0; s < p.keys; ++s) total += real(s) ? by_key[s] : 0.0f;
        for (int64_t s = 0; s < p.keys; ++s) weights[s] = real(s) ? by_key[s] / total : 0.0f;
    }

    void advance(int64_t t) {
        const int64_t H = p.H, n = H / W;
        const float* before = hidden_before(t);
        float *parts = p.parts + step(t) * 4 * H, *output = p.outputs + step(t) * H;
        std::copy_n(p.bias, 3 * H, product);
        accumulate(product, before, p.by_hidden, H, 3 * H);
        std::copy_n(p.gates + step(t) * 3 * H, 3 * H, parts);
        accumulate(parts, p.contexts + step(t) * p.E, p.by_context, p.E, 3 * H);
        for (int64_t i = 0; i < n; ++i) {
            const Lanes reset = lanes::sigmoid(exp2, at(parts, i) + at(product, i));
            const Lanes update = lanes::sigmoid(exp2, at(parts, n + i) + at(product, n + i));
            const Lanes candidate = lanes::tanh(at(parts, 2 * n + i) + reset * at(product, 2 * n + i));
            put(parts, i, reset);
            put(parts, n + i, update);
            put(parts, 2 * n + i, candidate);
            put(parts, 3 * n + i, at(product, 2 * n + i));
            put(output, i, candidate + update * (at(before, i) - candidate));
        }
    }
};

// `queries` are those of the attention here, whole.
class Backward : public Row {
    float* dh;

   public:
    Backward(const Problem& problem, int64_t task, Scratch& s) : Row(problem, task, s), dh(floats(s, problem.H)) {}

    void run() {
        std::copy_n(p.dlast + row * p.H, p.H, dh);
        std::fill_n(p.dkey + row * p.keys * p.A, p.keys * p.A, 0.0f);
        std::fill_n(p.dv + row * p.A, p.A, 0.0f);
        for (int64_t t = p.steps - 1; t >= 0; --t) {
            retreat(t);
            through_attention(t);
            accumulate(dh, p.dqueries + step(t) * p.A, p.by_query, p.A, p.H);
        }
        std::copy_n(dh, p.H, p.dfirst + row * p.H);
    }

   private:
    void retreat(int64_t t) {
        const int64_t H = p.H, n = H / W;
        const float *parts = p.parts + step(t) * 4 * H, *before = hidden_before(t);
        float *dgates = p.dgates + step(t) * 3 * H, *dhidden = p.dhidden + step(t) * 3 * H;
        for (int64_t i = 0; i < n; ++i) {
            const Lanes reset = at(parts, i), update = at(parts, n + i), candidate = at(parts, 2 * n + i);
            const Lanes d = at(dh, i) + at(p.doutputs + step(t) * H, i);
            const Lanes dcandidate = d * (1.0f - update) * (1.0f - candidate * candidate);
            const Lanes dreset = dcandidate * at(parts, 3 * n + i) * reset * (1.0f - reset);
            const Lanes dupdate = d * (at(before, i) - candidate) * update * (1.0f - update);
            for (float* to : {dgates, dhidden}) {
                put(to, i, dreset);
                put(to, n + i, dupdate);
            }
            put(dgates, 2 * n + i, dcandidate);
            put(dhidden, 2 * n + i, dcandidate * reset);
            put(dh, i, d * update);
        }
        accumulate(dh, dhidden, p.by_hidden, 3 * H, H);
        float* dcontext = p.dcontext + step(t) * p.E;
        std::copy_n(p.dcontexts + step(t) * p.E, p.E, dcontext);
        accumulate(dcontext, dgates, p.by_context, 3 * H, p.E);
    }

    // With w the weights and dw_s = dcontext . value_s, the gradient of score s is w_s (dw_s - sum w dw).
    void through_attention(int64_t t) {
        const float *dcontext = p.dcontext + step(t) * p.E, *weights = p.weights + step(t) * p.keys;
        const float* q = p.queries + step(t) * p.A;
        float *dq = p.dqueries + step(t) * p.A, *dkey = p.dkey + row * p.keys * p.A, *dv = p.dv + row * p.A;
        for (int64_t s = 0; s < p.keys; ++s) {
            Lanes sum{};
            for (int64_t i = 0; i < p.E / W; ++i) sum += at(dcontext, i) * at(value + s * p.E, i);
            terms[s] = sum;
        }
        add_up_terms();
        float mean = 0.0f;
        for (int64_t s = 0; s < p.keys; ++s)
            if (real(s)) mean += weights[s] * by_key[s];
        for (int64_t s = 0; s < p.keys; ++s) by_key[s] = real(s) ? weights[s] * (by_key[s] - mean) : 0.0f;
        for (int64_t i = 0; i < p.A / W; ++i) {
            const Lanes query = at(q, i), v = at(p.v, i);
            Lanes to_query{}, to_v{};
            for (int64_t s = 0; s < p.keys; ++s) {
                if (!real(s)) continue;
                const Lanes th = lanes::tanh(query + at(key + s * p.A, i)), d = by_key[s] * v * (1.0f - th * th);
                to_query += d;
                to_v += by_key[s] * th;
                add(dkey + s * p.A, i, d);
            }
            put(dq, i, to_query);
            add(dv, i, to_v);
        }
    }
};

template <class Pass>
int run(const Problem& p) {
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, task, scratch).run(); };
    return parallel::run(p.rows, p.threads, work) ? 0 : 1;
}

}  // namespace recurrent

using recurrent::Backward, recurrent::Forward, recurrent::Problem;

// Both return 0, or 1 if there was not enough memory.
extern "C" int attentive_gru_forward(const Problem* p) { return recurrent::run<Forward>(*p); }
extern "C" int attentive_gru_backward(const Problem* p) { return recurrent::run<Backward>(*p); }
