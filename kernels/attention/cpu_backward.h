// The gradients of queries, keys and values from those of out, with all weights computed again.
#pragma once

#include "cpu_pass.h"

namespace attention {

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
        for (int64_t k = 0; k < padded_keys; k += PANEL) turn(key_panels + k * width, key + k * width, PANEL, width);
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

}  // namespace attention
