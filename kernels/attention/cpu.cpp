// Softmax attention in float32 on the CPU, forward and backward, behind a plain C interface.
//
// A block of queries meets the keys block by block, so that scores never leave the cache (Dao et al. 2022, algorithms 1
// and 4). Everything is copied into panels padded with zeros: then every product is one of whole tiles. A task is a
// row and a head going forward; going back a row and a head of the keys, whose gradients its groups of queries share.
#include <cmath>

#include "../parallel.h"

namespace attention {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;

constexpr int64_t QUERIES = 64, KEYS = 256;        // of a block
constexpr int64_t PANEL = 32;                      // keys side by side
constexpr int64_t ROWS = W == 16 ? 8 : 4;          // of a tile, whose sums fill the registers
constexpr int64_t STRIDE = KEYS + 16;              // of scores: no power of two, whose lines would share a cache set

// A (rows, heads, positions, features) tensor of any strides.
struct Heads {
    float* data;
    int64_t row, head, position, feature;

    float* at(int64_t r, int64_t h, int64_t t) const { return data + r * row + h * head + t * position; }
};

// The arguments and results, mirrored field by field in cpu.py.
struct Problem {
    int64_t rows, heads, groups, queries, keys, features, causal, threads;  // heads of the keys, groups of queries each
    Heads query, key, value, out;
    float* normalizer;  // (rows, heads * groups, queries), contiguous: the logarithm of the sum of each softmax
    Heads dout, dquery, dkey, dvalue;

    float scale() const { return 1.0f / std::sqrt(static_cast<float>(features)); }
    int64_t padded() const { return round_up(features, 16); }
    float* normalizers(int64_t row, int64_t head) const { return normalizer + (row * heads * groups + head) * queries; }

    static int64_t round_up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }
};

inline float* floats(Scratch& scratch, int64_t count) {
    return reinterpret_cast<float*>(scratch.take((count + W - 1) / W));
}

// to (ROWS, VECTORS lanes) = or += a (ROWS, count) times x (count, VECTORS lanes).
template <int VECTORS>
inline void tile(float* to, int64_t to_row, const float* a, int64_t a_row, int64_t a_column, const float* x,
                 int64_t x_row, int64_t count, bool add) {
    Lanes sums[ROWS][VECTORS];
    LANES_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) sums[r][k] = add ? lanes::load(to + r * to_row + k * W) : Lanes{};
    }
    for (int64_t j = 0; j < count; ++j) {
        Lanes terms[VECTORS];
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) terms[k] = lanes::load(x + j * x_row + k * W);
        LANES_UNROLL
        for (int r = 0; r < ROWS; ++r) {
            const float factor = a[r * a_row + j * a_column];
            LANES_UNROLL
            for (int k = 0; k < VECTORS; ++k) sums[r][k] += factor * terms[k];
        }
    }
    LANES_UNROLL
    for (int r = 0; r < ROWS; ++r) {
        LANES_UNROLL
        for (int k = 0; k < VECTORS; ++k) lanes::store(to + r * to_row + k * W, sums[r][k]);
    }
}

// A matrix of which the product takes rows and columns as its strides say.
struct Matrix {
    const float* data;
    int64_t row, column;
};

// to (rows, width) = or += a (rows, count) times x (count, width), with rows a multiple of ROWS, width one of W.
inline void product(float* to, int64_t to_row, Matrix a, const float* x, int64_t x_row, int64_t rows, int64_t width,
                    int64_t count, bool add) {
    for (int64_t i = 0; i < width;) {
        const bool pair = i + 2 * W <= width;
        for (int64_t r = 0; r < rows; r += ROWS)
            (pair ? tile<2> : tile<1>)(to + r * to_row + i, to_row, a.data + r * a.row, a.row, a.column, x + i, x_row,
                                       count, add);
        i += pair ? 2 * W : W;
    }
}

// Vectors of one head as rows of `width`, zeros behind each and behind the last; `factor` times what was given.
inline void pack(float* to, int64_t width, const Heads& from, int64_t row, int64_t head, int64_t first, int64_t count,
                 int64_t padded, int64_t features, float factor) {
    constexpr int64_t AHEAD = 32;  // the vectors of one head lie apart, where no processor looks for them
    for (int64_t t = 0; t < padded; ++t, to += width) {
        int64_t e = 0;
        if (t < count) {
            const float* vector = from.at(row, head, first + t);
            for (int64_t i = 0; t + AHEAD < count && i < features; i += 16)
                __builtin_prefetch(vector + AHEAD * from.position + i);
            if (from.feature == 1)
                for (; e + W <= features; e += W) lanes::store(to + e, factor * lanes::load(vector + e));
            for (; e < features; ++e) to[e] = factor * vector[e * from.feature];
        }
        std::fill_n(to + e, width - e, 0.0f);
    }
}

// Rows of `width` to the vectors of one head, from position `first` on, times `factor`.
inline void unpack(const Heads& to, int64_t row, int64_t head, int64_t first, const float* from, int64_t width,
                   int64_t count, int64_t features, float factor) {
    for (int64_t t = 0; t < count; ++t, from += width) {
        float* vector = to.at(row, head, first + t);
        int64_t e = 0;
        if (to.feature == 1)
            for (; e + W <= features; e += W) lanes::store(vector + e, factor * lanes::load(from + e));
        for (; e < features; ++e) vector[e * to.feature] = factor * from[e];
    }
}

// Rows of `width` as panels (width, PANEL): in each, what lies side by side are PANEL rows.
inline void turn(float* to, const float* from, int64_t rows, int64_t width) {
    for (int64_t first = 0; first < rows; first += PANEL, to += width * PANEL)
        for (int64_t i = 0; i < PANEL; i += W)
            for (int64_t e = 0; e < width; e += W) {
                Lanes square[W];
                for (int k = 0; k < W; ++k) square[k] = lanes::load(from + (first + i + k) * width + e);
                lanes::transpose(square);
                for (int k = 0; k < W; ++k) lanes::store(to + (e + k) * PANEL + i, square[k]);
            }
}

// A block of queries against a block of keys.
struct Block {
    int64_t query, queries, key, keys;  // where they begin, and how many of each, the keys a multiple of PANEL

    // The keys from `key` on that any of the queries may see.
    Block(const Problem& p, int64_t query, int64_t queries, int64_t key)
        : query(query), queries(queries), key(key) {
        const int64_t end = p.causal ? std::min(p.keys, query + queries) : p.keys;
        keys = Problem::round_up(std::min(KEYS, end - key), PANEL);
    }

    int64_t rows() const { return Problem::round_up(queries, ROWS); }

    // How many of the keys a query may see.
    int64_t seen(const Problem& p, int64_t q) const {
        const int64_t end = p.causal ? std::min(p.keys, query + q + 1) : p.keys;
        return std::min(keys, std::max<int64_t>(0, end - key));
    }
};

// What both passes do: scratch memory, scores.
class Pass {
   protected:
    const Problem& p;
    const int64_t width, padded_keys;
    const lanes::Exp2 exp2{};

    Pass(const Problem& problem)
        : p(problem), width(p.padded()), padded_keys(Problem::round_up(p.keys, PANEL)) {}

    // How many queries from `query` on meet the keys from `key` on: fewer where some keys are hidden from some of them, as
    // what is hidden is computed in vain.
    int64_t together(int64_t query, int64_t key) const {
        return std::min(p.causal && query < key + KEYS ? QUERIES / 2 : QUERIES, p.queries - query);
    }

    // Of the block: products (queries, keys) of the rows of `a` with panels.
    void multiply(float* to, const float* a, const float* panels, const Block& b) const {
        for (int64_t k = 0; k < b.keys; k += PANEL)
            product(to + k, STRIDE, {a, width, 1}, panels + (b.key + k) * width, PANEL, b.rows(), PANEL, width, false);
    }

    void hide(float* scores, const Block& b, float with) const {
        for (int64_t q = 0; q < b.queries; ++q)
            for (int64_t s = b.seen(p, q); s < b.keys; ++s) scores[q * STRIDE + s] = with;
    }
};

class Forward : Pass {
    float *rows, *panels, *value, *query, *scores, *sums, *highest, *result;

   public:
    Forward(const Problem& problem, Scratch& s)
        : Pass(problem), rows(floats(s, padded_keys * width)), panels(floats(s, padded_keys * width)),
          value(floats(s, padded_keys * width)), query(floats(s, QUERIES * width)),
          scores(floats(s, QUERIES * STRIDE)), sums(floats(s, QUERIES * W)), highest(floats(s, QUERIES)),
          result(floats(s, QUERIES * width)) {}

    void run(int64_t task) {
        const int64_t heads = p.heads * p.groups, row = task / heads, head = task % heads, of = head / p.groups;
        pack(rows, width, p.key, row, of, 0, p.keys, padded_keys, p.features, 1.0f);
        turn(panels, rows, padded_keys, width);
        pack(value, width, p.value, row, of, 0, p.keys, padded_keys, p.features, 1.0f);
        for (int64_t first = 0, count; first < p.queries; first += count) {
            count = together(first, first);
            pack(query, width, p.query, row, head, first, count, QUERIES, p.features, p.scale());
            attend(first, count);
            write(row, head, first, count);
        }
    }

   private:
    void attend(int64_t first, int64_t count) {
        std::fill_n(sums, QUERIES * W, 0.0f);
        std::fill_n(highest, QUERIES, -INFINITY);
        std::fill_n(result, QUERIES * width, 0.0f);
        for (int64_t key = 0; key < (p.causal ? std::min(p.keys, first + count) : p.keys); key += KEYS) {
            const Block b(p, first, count, key);
            multiply(scores, query, panels, b);
            hide(scores, b, -INFINITY);
            for (int64_t q = 0; q < count; q += W) weigh(q, b.keys);
            product(result, width, {scores, STRIDE, 1}, value + key * width, width, b.rows(), width, b.keys, true);
        }
    }

    // Scores of W queries to weights, not yet divided by their sum; what was summed before shrinks where a higher score
    // has come.
    void weigh(int64_t first, int64_t keys) {
        Lanes most[W];
        for (int i = 0; i < W; ++i) {
            const float* from = scores + (first + i) * STRIDE;
            most[i] = lanes::load(from);
            for (int64_t s = W; s < keys; s += W) most[i] = lanes::max(most[i], lanes::load(from + s));
        }
        lanes::transpose(most);
        const Lanes before = lanes::load(highest + first);
        Lanes now = before;
        for (int i = 0; i < W; ++i) now = lanes::max(now, most[i]);
        lanes::store(highest + first, now);
        const Lanes shrink = lanes::exp_negative(exp2, before - now);
        for (int i = 0; i < W; ++i) weigh(first + i, keys, now[i], shrink[i]);
    }

    void weigh(int64_t q, int64_t keys, float most, float shrink) {
        float *to = scores + q * STRIDE, *of = result + q * width;
        Lanes sum = shrink * lanes::load(sums + q * W);
        if (shrink != 1.0f)
            for (int64_t e = 0; e < width; e += W) lanes::store(of + e, shrink * lanes::load(of + e));
        for (int64_t s = 0; s < keys; s += W) {
            const Lanes weight = lanes::exp_negative(exp2, lanes::load(to + s) - most);
            sum += weight;
            lanes::store(to + s, weight);
        }
        lanes::store(sums + q * W, sum);
    }

    void write(int64_t row, int64_t head, int64_t first, int64_t count) {
        float* normalizers = p.normalizers(row, head) + first;
        for (int64_t q = 0; q < count; ++q) {
            if (q % W == 0) add_up(sums + q * W);
            const float total = sums[q / W * W * W + q % W];
            normalizers[q] = highest[q] + std::log(total);
            unpack(p.out, row, head, first + q, result + q * width, width, 1, p.features, 1.0f / total);
        }
    }

    // The first row of W x W becomes the sums of all rows.
    static void add_up(float* rows) {
        Lanes terms[W];
        for (int i = 0; i < W; ++i) terms[i] = lanes::load(rows + i * W);
        lanes::store(rows, lanes::sum_each(terms));
    }
};

// With P the weights and dP = dout . value, the gradient of a score is P (dP - sum P dP), and that sum is dout . out.
class Backward : Pass {
    const int64_t padded_queries;
    float *key, *value, *key_panels, *value_panels, *dkey, *dvalue;  // of the keys' head
    float *query, *dout, *dquery, *means;                            // of one of its groups
    float *weights, *dscores;                                        // of a block

   public:
    Backward(const Problem& problem, Scratch& s)
        : Pass(problem), padded_queries(Problem::round_up(p.queries, QUERIES)) {
        for (float** each : {&key, &value, &key_panels, &value_panels, &dkey, &dvalue})
            *each = floats(s, padded_keys * width);
        for (float** each : {&query, &dout, &dquery}) *each = floats(s, padded_queries * width);
        means = floats(s, padded_queries);
        for (float** each : {&weights, &dscores}) *each = floats(s, QUERIES * STRIDE);
    }

    void run(int64_t task) {
        const int64_t row = task / p.heads, head = task % p.heads;
        pack(key, width, p.key, row, head, 0, p.keys, padded_keys, p.features, 1.0f);
        pack(value, width, p.value, row, head, 0, p.keys, padded_keys, p.features, 1.0f);
        turn(key_panels, key, padded_keys, width);
        turn(value_panels, value, padded_keys, width);
        for (float* sums : {dkey, dvalue}) std::fill_n(sums, padded_keys * width, 0.0f);
        for (int64_t group = 0; group < p.groups; ++group) through_queries(row, head * p.groups + group);
        unpack(p.dkey, row, head, 0, dkey, width, p.keys, p.features, 1.0f);
        unpack(p.dvalue, row, head, 0, dvalue, width, p.keys, p.features, 1.0f);
    }

   private:
    void through_queries(int64_t row, int64_t head) {
        pack(query, width, p.query, row, head, 0, p.queries, padded_queries, p.features, p.scale());
        pack(dout, width, p.dout, row, head, 0, p.queries, padded_queries, p.features, 1.0f);
        pack(dquery, width, p.out, row, head, 0, p.queries, padded_queries, p.features, 1.0f);
        for (int64_t t = 0; t < padded_queries; t += W)
            lanes::store(means + t, products(dout + t * width, dquery + t * width));
        std::fill_n(dquery, padded_queries * width, 0.0f);
        for (int64_t k = 0; k < p.keys; k += KEYS)
            for (int64_t q = p.causal ? k : 0, count; q < p.queries; q += count) {
                count = together(q, k);
                through(Block(p, q, count, k), p.normalizers(row, head) + q);
            }
        unpack(p.dquery, row, head, 0, dquery, width, p.queries, p.features, p.scale());
    }

    // Each row of `a` times that of `b`, feature by feature as in a tile: what should cancel then does so exactly.
    Lanes products(const float* a, const float* b) const {
        Lanes sums{}, left[W], right[W];
        for (int64_t e = 0; e < width; e += W) {
            for (int k = 0; k < W; ++k) {
                left[k] = lanes::load(a + k * width + e);
                right[k] = lanes::load(b + k * width + e);
            }
            lanes::transpose(left);
            lanes::transpose(right);
            for (int k = 0; k < W; ++k) sums += left[k] * right[k];
        }
        return sums;
    }

    void through(const Block& b, const float* normalizers) {
        const float *q = query + b.query * width, *d = dout + b.query * width;
        multiply(weights, q, key_panels, b);
        multiply(dscores, d, value_panels, b);
        hide(weights, b, -INFINITY);
        for (int64_t t = 0; t < b.queries; ++t)
            for (int64_t s = t * STRIDE; s < t * STRIDE + b.keys; s += W) {
                const Lanes weight = lanes::exp_negative(exp2, lanes::load(weights + s) - normalizers[t]);
                lanes::store(weights + s, weight);
                lanes::store(dscores + s, weight * (lanes::load(dscores + s) - means[b.query + t]));
            }
        const Matrix weights_of_keys{weights, 1, STRIDE}, dscores_of_keys{dscores, 1, STRIDE};
        product(dvalue + b.key * width, width, weights_of_keys, d, width, b.keys, width, b.queries, true);
        product(dkey + b.key * width, width, dscores_of_keys, q, width, b.keys, width, b.queries, true);
        product(dquery + b.query * width, width, {dscores, STRIDE, 1}, key + b.key * width, width, b.rows(), width,
                b.keys, true);
    }
};

template <class Pass>
int run(const Problem& p, int64_t tasks) {
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, scratch).run(task); };
    return parallel::run(tasks, p.threads, work) ? 0 : 1;
}

}  // namespace attention

using attention::Backward, attention::Forward, attention::Problem;

// Both return 0, or 1 if there was not enough memory.
extern "C" int attention_forward(const Problem* p) {
    return attention::run<Forward>(*p, p->rows * p->heads * p->groups);
}
extern "C" int attention_backward(const Problem* p) { return attention::run<Backward>(*p, p->rows * p->heads); }
