// Softmax attention in float32 on the CPU, forward and backward, behind a plain C interface.
//
// A block of queries meets the keys block by block, so that scores never leave the nearest cache (Dao et al. 2022,
// algorithms 1 and 4). Everything is copied into rows or panels padded with zeros: then every product is one of whole
// tiles. A task is a row and a head going forward; going back a row and a head of the keys, whose gradients its groups of
// queries share.
#include <cmath>
#include <utility>

#include "../functions.h"
#include "../parallel.h"

namespace attention {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;

constexpr int64_t PANEL = 32;               // queries or keys side by side
constexpr int64_t ROWS = W == 16 ? 8 : 4;   // of a tile, whose sums fill the registers

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
    Lanes sums[ROWS][VECTORS]{};
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
        for (int k = 0; k < VECTORS; ++k) {  // the sum of many blocks rounds less than one over all
            float* at = to + r * to_row + k * W;
            lanes::store(at, add ? lanes::load(at) + sums[r][k] : sums[r][k]);
        }
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

// PANEL rows of `width` to a panel (width, PANEL), in which they lie side by side.
inline void turn(float* to, const float* from, int64_t width) {
    for (int64_t i = 0; i < PANEL; i += W)
        for (int64_t e = 0; e < width; e += W) {
            Lanes square[W];
            for (int k = 0; k < W; ++k) square[k] = lanes::load(from + (i + k) * width + e);
            lanes::transpose(square);
            for (int k = 0; k < W; ++k) lanes::store(to + (e + k) * PANEL + i, square[k]);
        }
}

// And back.
inline void turn_back(float* to, const float* from, int64_t width) {
    for (int64_t i = 0; i < PANEL; i += W)
        for (int64_t e = 0; e < width; e += W) {
            Lanes square[W];
            for (int k = 0; k < W; ++k) square[k] = lanes::load(from + (e + k) * PANEL + i);
            lanes::transpose(square);
            for (int k = 0; k < W; ++k) lanes::store(to + (i + k) * width + e, square[k]);
        }
}

// What both passes do: scratch memory, exponentials.
class Pass {
   protected:
    const Problem& p;
    const int64_t width, padded_keys;
    float* const spare;  // PANEL rows
    const lanes::Exp2 exp2{};

    Pass(const Problem& problem, Scratch& s)
        : p(problem), width(p.padded()), padded_keys(Problem::round_up(p.keys, PANEL)), spare(floats(s, PANEL * width)) {}

    // e^x for x <= 0, as exact as x is that comes of a score; 0 where it would be less than the least normal float.
    Lanes exp(Lanes x) const { return exp2(lanes::max(lanes::all(-88.0f), x), lanes::all(lanes::LOG2E)); }

    void pack_panels(float* to, const Heads& from, int64_t row, int64_t head, int64_t first, int64_t count,
                     int64_t padded, float factor) const {
        for (int64_t t = 0; t < padded; t += PANEL, to += PANEL * width) {
            pack(spare, width, from, row, head, first + t, count - t, PANEL, p.features, factor);
            turn(to, spare, width);
        }
    }

    void unpack_panels(const Heads& to, int64_t row, int64_t head, int64_t first, const float* from, int64_t count,
                       float factor) const {
        for (int64_t t = 0; t < count; t += PANEL, from += PANEL * width) {
            turn_back(spare, from, width);
            unpack(to, row, head, first + t, spare, width, std::min(PANEL, count - t), p.features, factor);
        }
    }
};

// Lanes are queries: maxima and sums of theirs are those of whole vectors.
class Forward : Pass {
    static constexpr int64_t KEYS = 128;  // of a block
    float *key, *value, *query, *scores, *sums, *highest, *result;
    int64_t used = 0;  // of a panel, whole vectors

   public:
    Forward(const Problem& problem, Scratch& s)
        : Pass(problem, s), key(floats(s, padded_keys * width)), value(floats(s, padded_keys * width)),
          query(floats(s, width * PANEL)), scores(floats(s, KEYS * PANEL)), sums(floats(s, PANEL)),
          highest(floats(s, PANEL)), result(floats(s, width * PANEL)) {}

    void run(int64_t task) {
        const int64_t heads = p.heads * p.groups, row = task / heads, head = task % heads, of = head / p.groups;
        pack(key, width, p.key, row, of, 0, p.keys, padded_keys, p.features, 1.0f);
        pack(value, width, p.value, row, of, 0, p.keys, padded_keys, p.features, 1.0f);
        for (int64_t first = 0; first < p.queries; first += PANEL) {
            const int64_t count = std::min(PANEL, p.queries - first);
            pack_panels(query, p.query, row, head, first, p.queries - first, PANEL, p.scale());
            used = std::min(PANEL, Problem::round_up(count, W));
            attend(first, p.causal ? std::min(p.keys, first + count) : p.keys);
            write(row, head, first, count);
        }
    }

   private:
    // The queries from `first` on, and the keys before `end`.
    void attend(int64_t first, int64_t end) {
        std::fill_n(sums, PANEL, 0.0f);
        std::fill_n(highest, PANEL, -INFINITY);
        std::fill_n(result, width * PANEL, 0.0f);
        for (int64_t from = 0; from < end; from += KEYS) {
            const int64_t keys = std::min(KEYS, end - from);
            product(scores, PANEL, {key + from * width, width, 1}, query, PANEL, Problem::round_up(keys, ROWS), used,
                    width, false);
            if (p.causal) hide(first - from, keys);
            for (int64_t lane = 0; lane < used; lane += W) weigh(lane, keys);
            product(result, PANEL, {value + from * width, 1, width}, scores, PANEL, width, used, keys, true);
        }
    }

    // Keys from the queries, of which the first is level with key `level`.
    void hide(int64_t level, int64_t keys) {
        for (int64_t k = std::max<int64_t>(0, level + 1); k < keys; ++k)
            std::fill_n(scores + k * PANEL, k - level, -INFINITY);
    }

    // Scores of W queries to weights, not yet divided by their sum; what was summed before shrinks where a higher score
    // has come.
    void weigh(int64_t lane, int64_t keys) {
        float* column = scores + lane;
        const Lanes before = lanes::load(highest + lane);
        Lanes most = before, other = before;  // by turns, as the next comparison waits for the last one's result
        for (int64_t k = 0; k < keys; ++k)
            most = std::exchange(other, lanes::max(most, lanes::load(column + k * PANEL)));
        most = lanes::max(most, other);
        lanes::store(highest + lane, most);
        const Lanes shrink = exp(before - most);
        Lanes sum = shrink * lanes::load(sums + lane);
        for (int64_t k = 0; k < keys; ++k) {
            const Lanes weight = exp(lanes::load(column + k * PANEL) - most);
            sum += weight;
            lanes::store(column + k * PANEL, weight);
        }
        lanes::store(sums + lane, sum);
        for (float* of = result + lane; of < result + width * PANEL; of += PANEL)
            lanes::store(of, shrink * lanes::load(of));
    }

    void write(int64_t row, int64_t head, int64_t first, int64_t count) {
        float* normalizers = p.normalizers(row, head) + first;
        for (int64_t q = 0; q < count; ++q) normalizers[q] = highest[q] + std::log(sums[q]);
        for (int64_t lane = 0; lane < used; lane += W) {
            const Lanes share = 1.0f / lanes::load(sums + lane);
            for (float* of = result + lane; of < result + width * PANEL; of += PANEL)
                lanes::store(of, share * lanes::load(of));
        }
        unpack_panels(p.out, row, head, first, result, count, 1.0f);
    }
};

// With P the weights and dP = dout . value, the gradient of a score is P (dP - sum P dP), and that sum is dout . out.
// Lanes are keys, as of the three products with P and its gradient two are for keys.
class Backward : Pass {
    static constexpr int64_t QUERIES = 64, KEYS = 128;  // of a block
    static constexpr int64_t STRIDE = KEYS + 16;        // of scores: no power of two, whose lines would share a cache set
    const int64_t padded_queries;
    float *key, *key_panels, *value_panels, *dkey_panels, *dvalue_panels;  // of the keys' head
    float *query, *dout, *dquery, *means;                                  // of one of its groups
    float *weights, *dscores;                                              // of a block

    // A block of queries against a block of keys.
    struct Block {
        int64_t query, queries, key, keys;  // where they begin, and how many of each meet
        int64_t rows() const { return Problem::round_up(queries, ROWS); }
        int64_t columns() const { return Problem::round_up(keys, PANEL); }
    };

   public:
    Backward(const Problem& problem, Scratch& s)
        : Pass(problem, s), padded_queries(Problem::round_up(p.queries, QUERIES)) {
        for (float** each : {&key, &key_panels, &value_panels, &dkey_panels, &dvalue_panels})
            *each = floats(s, padded_keys * width);
        for (float** each : {&query, &dout, &dquery}) *each = floats(s, padded_queries * width);
        means = floats(s, padded_queries);
        for (float** each : {&weights, &dscores}) *each = floats(s, QUERIES * STRIDE);
    }

    void run(int64_t task) {
        const int64_t row = task / p.heads, head = task % p.heads;
        pack(key, width, p.key, row, head, 0, p.keys, padded_keys, p.features, 1.0f);
        for (int64_t k = 0; k < padded_keys; k += PANEL) turn(key_panels + k * width, key + k * width, width);
        pack_panels(value_panels, p.value, row, head, 0, p.keys, padded_keys, 1.0f);
        for (float* sums : {dkey_panels, dvalue_panels}) std::fill_n(sums, padded_keys * width, 0.0f);
        for (int64_t group = 0; group < p.groups; ++group) through_queries(row, head * p.groups + group);
        unpack_panels(p.dkey, row, head, 0, dkey_panels, p.keys, 1.0f);
        unpack_panels(p.dvalue, row, head, 0, dvalue_panels, p.keys, 1.0f);
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
                const int64_t end = p.causal ? std::min(p.keys, q + count) : p.keys;
                through({q, count, k, std::min(KEYS, end - k)}, p.normalizers(row, head) + q);
            }
        unpack(p.dquery, row, head, 0, dquery, width, p.queries, p.features, p.scale());
    }

    // How many queries from `query` on meet the keys from `key` on: fewer where some keys are hidden from some of them, as
    // what is hidden is computed in vain.
    int64_t together(int64_t query, int64_t key) const {
        return std::min(p.causal && query < key + KEYS ? QUERIES / 2 : QUERIES, p.queries - query);
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
        hide(b);
        for (int64_t t = 0; t < b.queries; ++t) {
            const Lanes normalizer = lanes::all(normalizers[t]), mean = lanes::all(means[b.query + t]);
            for (int64_t s = t * STRIDE; s < t * STRIDE + b.columns(); s += W) {
                const Lanes weight = exp(lanes::load(weights + s) - normalizer);
                lanes::store(weights + s, weight);
                lanes::store(dscores + s, weight * (lanes::load(dscores + s) - mean));
            }
        }
        add(dvalue_panels, weights, d, b);
        add(dkey_panels, dscores, q, b);
        product(dquery + b.query * width, width, {dscores, STRIDE, 1}, key + b.key * width, width, b.rows(), width,
                b.columns(), true);
    }

    // Products (queries, keys) of the rows of `a` with panels.
    void multiply(float* to, const float* a, const float* panels, const Block& b) const {
        for (int64_t k = 0; k < b.columns(); k += PANEL)
            product(to + k, STRIDE, {a, width, 1}, panels + (b.key + k) * width, PANEL, b.rows(), PANEL, width, false);
    }

    // To panels of the keys, those (queries, keys) times the rows of `a`.
    void add(float* panels, const float* of_scores, const float* a, const Block& b) const {
        for (int64_t k = 0; k < b.columns(); k += PANEL)
            product(panels + (b.key + k) * width, PANEL, {a, 1, width}, of_scores + k, STRIDE, width, PANEL, b.queries,
                    true);
    }

    // What a query may not see, and what is behind the last key.
    void hide(const Block& b) {
        for (int64_t q = 0; q < b.queries; ++q) {
            const int64_t seen = p.causal ? std::min(b.keys, b.query + q + 1 - b.key) : b.keys;
            for (int64_t s = seen; s < b.columns(); ++s) weights[q * STRIDE + s] = -INFINITY;
        }
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
