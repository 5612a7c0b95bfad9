// Additive attention in float32 on the CPU, forward and backward, behind a plain C interface.
//
// Lanes are the features of a vector, padded with zeros: v is 0 there, so they add nothing. A task is a row of the
// batch. Masked keys are left out, not multiplied by 0: what they hold may be anything.
#include <cmath>

#include "../parallel.h"
#include "../tiles.h"

namespace attention {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;
using tiles::View;  // here (rows, positions, features)

// The arguments and results, mirrored field by field in cpu.py. An absent mask has no data.
struct Problem {
    int64_t rows, queries, keys, hidden, width, threads;
    const uint8_t* mask;  // (rows, keys), contiguous
    View query, key, value, v;
    View context, weights;
    View dcontext, dquery, dkey, dvalue, dv;
};

inline int lanes_for(int64_t features) { return static_cast<int>((features + W - 1) / W); }

// Vectors, one per position: those of a tensor's row where they lie, if they fill whole lanes, else a padded copy.
class Table {
    const View& view;
    const int64_t row, positions, features;
    float* data;
    int64_t stride;

    bool in_place() const { return view.step == 1 && features % W == 0; }

   public:
    Table(const View& v, int64_t r, int64_t vectors, int64_t length, Scratch& scratch)
        : view(v), row(r), positions(vectors), features(length), data(view.at(row, 0, 0)), stride(view.channel) {
        if (in_place()) return;
        stride = lanes_for(features) * W;
        data = reinterpret_cast<float*>(scratch.take(positions * lanes_for(features)));
    }

    int width() const { return lanes_for(features); }
    float* operator[](int64_t position) const { return data + position * stride; }
    Lanes get(int64_t position, int i) const { return lanes::load((*this)[position] + i * W); }
    void set(int64_t position, int i, Lanes value) const { lanes::store((*this)[position] + i * W, value); }
    void add(int64_t position, int i, Lanes term) const { set(position, i, get(position, i) + term); }

    const Table& read() const {
        for (int64_t s = 0; !in_place() && s < positions; ++s) {
            std::fill_n((*this)[s], stride, 0.0f);
            for (int64_t i = 0; i < features; ++i) (*this)[s][i] = *view.at(row, s, i);
        }
        return *this;
    }

    const Table& clear() const {
        for (int64_t s = 0; s < positions; ++s) std::fill_n((*this)[s], lanes_for(features) * W, 0.0f);
        return *this;
    }

    void write() const {
        for (int64_t s = 0; !in_place() && s < positions; ++s)
            for (int64_t i = 0; i < features; ++i) *view.at(row, s, i) = (*this)[s][i];
    }
};

// What both passes read of one row of the batch, and a number per key.
class Row {
   protected:
    const Problem& p;
    const int64_t row;
    const int keys;
    const Table key, value, v, query, weights;
    Lanes* terms;   // [key], whose lanes are yet to be added up
    float* by_key;  // [key]
    const lanes::Exp2 exp2{};

    Row(const Problem& problem, int64_t task, Scratch& s)
        : p(problem), row(task), keys(static_cast<int>(p.keys)), key(p.key, row, keys, p.hidden, s),
          value(p.value, row, keys, p.width, s), v(p.v, 0, 1, p.hidden, s), query(p.query, row, p.queries, p.hidden, s),
          weights(p.weights, row, p.queries, keys, s), terms(s.take(keys + W)),
          by_key(reinterpret_cast<float*>(s.take(lanes_for(keys)))) {
        key.read();
        value.read();
        v.read();
        query.read();
    }

    bool real(int s) const { return !p.mask || p.mask[row * keys + s]; }

    void add_up_terms() {
        for (int s = 0; s < keys; s += W) lanes::store(by_key + s, lanes::sum_each(terms + s));
    }
};

class Forward : Row {
    const Table context;

   public:
    Forward(const Problem& problem, int64_t task, Scratch& s)
        : Row(problem, task, s), context(p.context, row, p.queries, p.width, s) {}

    void run() {
        for (int64_t t = 0; t < p.queries; ++t) {
            for (int s = 0; s < keys; ++s) terms[s] = score(t, s);
            add_up_terms();
            weigh(weights[t]);
            int i = 0;
            for (; i + BLOCK <= value.width(); i += BLOCK) average<BLOCK>(t, i);
            for (; i < value.width(); ++i) average<1>(t, i);
        }
        context.write();
        weights.write();
    }

   private:
    static constexpr int BLOCK = 8;  // vectors of a context held in registers

    template <int COUNT>
    void average(int64_t t, int i) const {
        Lanes sums[COUNT]{};
        for (int s = 0; s < keys; ++s) {
            if (!real(s)) continue;
            LANES_UNROLL
            for (int k = 0; k < COUNT; ++k) sums[k] += weights[t][s] * value.get(s, i + k);
        }
        LANES_UNROLL
        for (int k = 0; k < COUNT; ++k) context.set(t, i + k, sums[k]);
    }

    Lanes score(int64_t t, int s) const {
        Lanes sum{};
        for (int i = 0; i < key.width(); ++i) sum += v.get(0, i) * lanes::tanh(query.get(t, i) + key.get(s, i));
        return sum;
    }

    // The softmax of by_key over the real keys; all 0 where there is none.
    void weigh(float* to) {
        float highest = -INFINITY, total = 0.0f;
        for (int s = 0; s < keys; ++s)
            if (real(s)) highest = std::max(highest, by_key[s]);
        for (int s = 0; s < keys; s += W)
            lanes::store(by_key + s, lanes::exp_negative(exp2, lanes::load(by_key + s) - highest));
        for (int s = 0; s < keys; ++s) total += real(s) ? by_key[s] : 0.0f;
        for (int s = 0; s < keys; ++s) to[s] = real(s) ? by_key[s] / total : 0.0f;
    }
};

// With w the weights and dw_s = dcontext . value_s, the gradient of score s is w_s (dw_s - sum w dw).
class Backward : Row {
    const Table dcontext, dquery, dkey, dvalue, dv;

   public:
    Backward(const Problem& problem, int64_t task, Scratch& s)
        : Row(problem, task, s), dcontext(p.dcontext, row, p.queries, p.width, s),
          dquery(p.dquery, row, p.queries, p.hidden, s), dkey(p.dkey, row, keys, p.hidden, s),
          dvalue(p.dvalue, row, keys, p.width, s), dv(p.dv, row, 1, p.hidden, s) {
        weights.read();
        dcontext.read();
        for (const Table* table : {&dquery, &dkey, &dvalue, &dv}) table->clear();
    }

    void run() {
        for (int64_t t = 0; t < p.queries; ++t) {
            for (int s = 0; s < keys; ++s) terms[s] = through_value(t, s);
            add_up_terms();
            float mean = 0.0f;
            for (int s = 0; s < keys; ++s)
                if (real(s)) mean += weights[t][s] * by_key[s];
            for (int s = 0; s < keys; ++s)
                if (real(s)) through_score(t, s, weights[t][s] * (by_key[s] - mean));
        }
        for (const Table* table : {&dquery, &dkey, &dvalue, &dv}) table->write();
    }

   private:
    Lanes through_value(int64_t t, int s) const {
        Lanes sum{};
        for (int i = 0; i < value.width(); ++i) {
            sum += dcontext.get(t, i) * value.get(s, i);
            dvalue.add(s, i, weights[t][s] * dcontext.get(t, i));
        }
        return sum;
    }

    void through_score(int64_t t, int s, float dscore) const {
        for (int i = 0; i < key.width(); ++i) {
            const Lanes th = lanes::tanh(query.get(t, i) + key.get(s, i));
            const Lanes d = dscore * v.get(0, i) * (1.0f - th * th);
            dquery.add(t, i, d);
            dkey.add(s, i, d);
            dv.add(0, i, dscore * th);
        }
    }
};

template <class Pass>
int run(const Problem& p) {
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, task, scratch).run(); };
    return parallel::run(p.rows, p.threads, work) ? 0 : 1;
}

}  // namespace attention

using attention::Backward, attention::Forward, attention::Problem;

// Both return 0, or 1 if there was not enough memory.
extern "C" int additive_attention_forward(const Problem* p) { return attention::run<Forward>(*p); }
extern "C" int additive_attention_backward(const Problem* p) { return attention::run<Backward>(*p); }
