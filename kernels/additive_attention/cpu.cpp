// Additive attention in float32 on the CPU, forward and backward, behind a plain C interface.
//
// Lanes are the features of a vector, padded with zeros: v is 0 there, so they add nothing. A task is a row of the
// batch.
#include "../additive_row.h"
#include "../tiles.h"

namespace {

using additive::Vectors;
using lanes::W;
using parallel::Scratch;
using tiles::View;  // here (rows, positions, features)

// The arguments and results, mirrored field by field in cpu.py. An absent mask has no data.
struct Problem {
    int64_t rows, queries, keys, hidden, width, threads;
    const uint8_t* mask;  // (rows, keys), contiguous
    float* weights;       // (rows, queries, keys), contiguous
    View query, key, value, v, context;
    View dcontext, dquery, dkey, dv;
};

int lanes_for(int64_t features) { return static_cast<int>((features + W - 1) / W); }

// Vectors of whole lanes: those of a tensor's row where they lie, if they fill them, else a padded copy.
class Table : public Vectors {
    const View& view;
    const int64_t row, positions, features;

    bool in_place() const { return view.step == 1 && features % W == 0; }

   public:
    Table(const View& v, int64_t r, int64_t vectors, int64_t length, Scratch& scratch)
        : Vectors{v.at(r, 0, 0), v.channel, lanes_for(length)}, view(v), row(r), positions(vectors), features(length) {
        if (in_place()) return;
        stride = width * W;
        data = additive::floats(scratch, positions * stride);
    }

    const Table& read() const {
        for (int64_t s = 0; !in_place() && s < positions; ++s) {
            std::fill_n((*this)[s], stride, 0.0f);
            for (int64_t i = 0; i < features; ++i) (*this)[s][i] = *view.at(row, s, i);
        }
        return *this;
    }

    void write() const {
        for (int64_t s = 0; !in_place() && s < positions; ++s)
            for (int64_t i = 0; i < features; ++i) *view.at(row, s, i) = (*this)[s][i];
    }
};

// What both passes read of one row of the batch.
struct Row {
    const Problem& p;
    const int64_t row;
    const Table key, value, v, query;

    Row(const Problem& problem, int64_t task, Scratch& s)
        : p(problem), row(task), key(p.key, row, p.keys, p.hidden, s), value(p.value, row, p.keys, p.width, s),
          v(p.v, 0, 1, p.hidden, s), query(p.query, row, p.queries, p.hidden, s) {
        for (const Table* table : {&key, &value, &v, &query}) table->read();
    }

    additive::Source source() const { return {key, value, v.data, p.mask ? p.mask + row * p.keys : nullptr, p.keys}; }
    float* weights(int64_t t) const { return p.weights + (row * p.queries + t) * p.keys; }
};

void forward(const Problem& p, int64_t task, Scratch& scratch) {
    const Row row(p, task, scratch);
    const Table context(p.context, task, p.queries, p.width, scratch);
    const additive::Forward attention(row.source(), scratch);
    for (int64_t t = 0; t < p.queries; ++t) attention.attend(row.query[t], row.weights(t), context[t]);
    context.write();
}

void backward(const Problem& p, int64_t task, Scratch& scratch) {
    const Row row(p, task, scratch);
    const Table dcontext(p.dcontext, task, p.queries, p.width, scratch), dkey(p.dkey, task, p.keys, p.hidden, scratch);
    const Table dquery(p.dquery, task, p.queries, p.hidden, scratch), dv(p.dv, task, 1, p.hidden, scratch);
    dcontext.read();
    additive::Backward attention(row.source(), dkey, dv.data, scratch);
    for (int64_t t = 0; t < p.queries; ++t) attention.attend(row.query[t], row.weights(t), dcontext[t], dquery[t]);
    attention.finish();
    for (const Table* table : {&dquery, &dkey, &dv}) table->write();
}

int run(const Problem& p, void (*pass)(const Problem&, int64_t, Scratch&)) {
    const auto work = [&](int64_t task, Scratch& scratch) { pass(p, task, scratch); };
    return parallel::run(p.rows, p.threads, work) ? 0 : 1;
}

}  // namespace

// Both return 0, or 1 if there was not enough memory.
extern "C" int additive_attention_forward(const Problem* p) { return run(*p, forward); }
extern "C" int additive_attention_backward(const Problem* p) { return run(*p, backward); }
