// Additive attention to the keys of one row of a batch, one query after another: the weights are the softmax of
// v . tanh(q + k), the context is their average of the values.
//
// tanh(q + k) = 1 - 2 / (1 + e^2q e^2k): with the exponentials of queries and keys at hand, a term takes a product and a
// reciprocal. `share` is that reciprocal, (1 - tanh(q + k)) / 2; the 1, which all scores have in common, is left out.
//
// Lanes are features. Masked keys are left out, not multiplied by 0: what they hold may be anything.
#pragma once

#include <cmath>

#include "functions.h"
#include "parallel.h"

namespace additive {

using lanes::Lanes;
using lanes::W;
using parallel::Scratch;

inline float* floats(Scratch& scratch, int64_t count) {
    return reinterpret_cast<float*>(scratch.take((count + W - 1) / W));
}

// Vectors of whole lanes, one per position.
struct Vectors {
    float* data;
    int64_t stride;
    int width;  // in lanes

    float* operator[](int64_t position) const { return data + position * stride; }
    Lanes get(int64_t position, int i) const { return lanes::load((*this)[position] + i * W); }
    void add(int64_t position, int i, Lanes term) const {
        lanes::store((*this)[position] + i * W, get(position, i) + term);
    }
};

// What is attended to.
struct Source {
    Vectors key, value;
    const float* v;
    const uint8_t* mask;  // of each key whether it is real; null if all are
    int64_t keys;

    bool real(int64_t s) const { return !mask || mask[s]; }
};

class Row {
    // Keys up to the one and queries up to the other: beyond, each term is the same to float32, or its exponential is
    // too large.
    static constexpr float LARGEST_KEY = 17.0f, LARGEST_QUERY = 26.0f;

    float* powers;  // e^2k of each key

    // Whether all real keys are small enough.
    bool raise_keys() const {
        const int width = source.key.width;
        lanes::Words beyond{};
        for (int64_t s = 0; s < source.keys; ++s)
            for (int i = 0; i < width; ++i) {
                const Lanes k = source.key.get(s, i);
                if (source.real(s)) beyond |= ~(lanes::abs(k) <= LARGEST_KEY);
                lanes::store(powers + (s * width + i) * W, exp2.e_to(2.0f * k));
            }
        for (int i = 0; i < W; ++i)
            if (beyond[i]) return false;
        return true;
    }

   protected:
    const Source source;
    const lanes::Exp2 exp2{};
    float* by_key;
    bool by_powers;

    Row(const Source& given, Scratch& scratch)
        : powers(floats(scratch, given.keys * given.key.width * W)), source(given),
          by_key(floats(scratch, given.keys + W)), by_powers(raise_keys()) {}

    // The query as `share` takes it.
    void prepare(const float* query, float* prepared) const {
        for (int i = 0; i < source.key.width; ++i) {
            const Lanes q = lanes::load(query + i * W);
            const Lanes bounded = lanes::max(lanes::all(-LARGEST_QUERY), lanes::min(lanes::all(LARGEST_QUERY), q));
            lanes::store(prepared + i * W, by_powers ? exp2.e_to(2.0f * bounded) : q);
        }
    }

    template <bool BY_POWERS>
    LANES_INLINE Lanes share(Lanes query, int64_t s, int i) const {
        if constexpr (BY_POWERS)
            return lanes::reciprocal(1.0f + query * lanes::load(powers + (s * source.key.width + i) * W));
        else return lanes::sigmoid(exp2, -2.0f * (query + source.key.get(s, i)));
    }

    // by_key of each key = the sum over `width` vectors i and their lanes of term(key, i)
    template <class Term>
    LANES_INLINE void sum_by_key(int width, const Term& term) const {
        for (int64_t s = 0; s < source.keys; s += W) {
            Lanes sums[W]{};
            const int64_t count = std::min<int64_t>(W, source.keys - s);
            for (int64_t j = 0; j < count; ++j) {
                Lanes sum{};
                for (int i = 0; i < width; ++i) sum += term(s + j, i);
                sums[j] = sum;
            }
            lanes::store(by_key + s, lanes::sum_each(sums));
        }
    }
};

class Forward : Row {
    float* query;

   public:
    Forward(const Source& given, Scratch& scratch)
        : Row(given, scratch), query(floats(scratch, given.key.width * W)) {}

    // The weight of each key, and the context: `value.width` lanes.
    void attend(const float* to, float* weights, float* context) const {
        prepare(to, query);
        by_powers ? score<true>() : score<false>();
        weigh(weights);
        std::fill_n(context, source.value.width * W, 0.0f);
        constexpr int64_t FEW = 64;  // sums of sums, as one long sum would lose digits
        for (int64_t s = 0; s < source.keys; s += FEW)
            average<W>(weights, context, s, std::min(s + FEW, source.keys), 0);
    }

   private:
    template <bool BY_POWERS>
    void score() const {
        sum_by_key(source.key.width, [&](int64_t s, int i) {
            return lanes::load(source.v + i * W) * share<BY_POWERS>(lanes::load(query + i * W), s, i);
        });
    }

    // The softmax of -2 by_key over the real keys; all 0 where there is none.
    void weigh(float* weights) const {
        const int64_t keys = source.keys;
        for (int64_t s = 0; s < keys; ++s) weights[s] = source.real(s) ? -2.0f * by_key[s] : -INFINITY;
        std::copy_n(weights, keys, by_key);
        std::fill_n(by_key + keys, W, -INFINITY);
        Lanes highest = lanes::all(-INFINITY), total{};
        for (int64_t s = 0; s < keys; s += W) highest = lanes::max(highest, lanes::load(by_key + s));
        float most = -INFINITY, sum = 0.0f;
        for (int i = 0; i < W; ++i) most = std::max(most, highest[i]);
        if (most == -INFINITY) most = 0.0f;
        for (int64_t s = 0; s < keys; s += W) {
            const Lanes e = lanes::exp_negative(exp2, lanes::load(by_key + s) - most);
            lanes::store(by_key + s, e);
            total += e;
        }
        for (int i = 0; i < W; ++i) sum += total[i];
        const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;
        for (int64_t s = 0; s < keys; ++s) weights[s] = by_key[s] * scale;
    }

    // Adds the keys from `from` to `end` to all vectors of the context from i on: VECTORS at a time, then by fewer.
    template <int VECTORS>
    void average(const float* weights, float* context, int64_t from, int64_t end, int i) const {
        for (; i + VECTORS <= source.value.width; i += VECTORS) {
            Lanes sums[VECTORS]{};
            for (int64_t s = from; s < end; ++s) {
                if (!source.real(s)) continue;
                LANES_UNROLL
                for (int k = 0; k < VECTORS; ++k) sums[k] += weights[s] * source.value.get(s, i + k);
            }
            LANES_UNROLL
            for (int k = 0; k < VECTORS; ++k) {
                float* place = context + (i + k) * W;
                lanes::store(place, lanes::load(place) + sums[k]);
            }
        }
        if constexpr (VECTORS > 1) average<VECTORS / 2>(weights, context, from, end, i);
    }
};

// With w the weights and dw_s = dcontext . value_s, the gradient of score s is w_s (dw_s - sum w dw). Those of the keys
// are brought up to date after many queries at once: the terms are computed twice, yet less goes through memory.
class Backward : Row {
    static constexpr int PENDING = 64, KEYS = W / 2, VECTORS = W / 4;

    const Vectors dkey;
    float* const dv;
    const int64_t stride;      // an odd number of vectors, so that a column does not fall into few sets of the cache
    float *queries, *dscores;  // [pending][feature], [pending][key]
    int pending = 0;

   public:
    // dkey and dv (as v) are set to 0, and are whole after `finish`.
    Backward(const Source& given, const Vectors& dkey, float* dv, Scratch& scratch)
        : Row(given, scratch), dkey(dkey), dv(dv), stride(((given.keys + W - 1) / W | 1) * W),
          queries(floats(scratch, PENDING * given.key.width * W)), dscores(floats(scratch, PENDING * stride)) {
        for (int64_t s = 0; s < source.keys; ++s) std::fill_n(dkey[s], source.key.width * W, 0.0f);
        std::fill_n(dv, source.key.width * W, 0.0f);
    }

    // The gradient of a query.
    void attend(const float* query, const float* weights, const float* dcontext, float* dquery) {
        float* prepared = queries + pending * source.key.width * W;
        prepare(query, prepared);
        differentiate_scores(weights, dcontext, dscores + pending * stride);
        by_powers ? to_query<true, VECTORS>(prepared, dquery, 0) : to_query<false, VECTORS>(prepared, dquery, 0);
        if (++pending == PENDING) finish();
    }

    void finish() {
        by_powers ? to_keys<true>() : to_keys<false>();
        pending = 0;
    }

   private:
    void differentiate_scores(const float* weights, const float* dcontext, float* dscore) const {
        sum_by_key(source.value.width, [&](int64_t s, int i) {
            return lanes::load(dcontext + i * W) * source.value.get(s, i);
        });
        float mean = 0.0f;
        for (int64_t s = 0; s < source.keys; ++s) mean += source.real(s) ? weights[s] * by_key[s] : 0.0f;
        for (int64_t s = 0; s < source.keys; ++s) dscore[s] = source.real(s) ? weights[s] * (by_key[s] - mean) : 0.0f;
        std::fill(dscore + source.keys, dscore + stride, 0.0f);
    }

    // From vector i on: COUNT at a time, then by fewer. The derivative of a score by q is 4 v share (1 - share).
    template <bool BY_POWERS, int COUNT>
    void to_query(const float* query, float* dquery, int i) const {
        const float* dscore = dscores + pending * stride;
        for (; i + COUNT <= source.key.width; i += COUNT) {
            Lanes q[COUNT], dq[COUNT]{}, shares[COUNT]{};
            LANES_UNROLL
            for (int k = 0; k < COUNT; ++k) q[k] = lanes::load(query + (i + k) * W);
            for (int64_t s = 0; s < source.keys; ++s) {
                if (!source.real(s)) continue;
                LANES_UNROLL
                for (int k = 0; k < COUNT; ++k) {
                    const Lanes r = share<BY_POWERS>(q[k], s, i + k), d = dscore[s] * r;
                    shares[k] += d;
                    dq[k] += d - d * r;
                }
            }
            for (int k = 0; k < COUNT; ++k) {
                float *to = dv + (i + k) * W, *slope = dquery + (i + k) * W;
                lanes::store(slope, 4.0f * lanes::load(source.v + (i + k) * W) * dq[k]);
                lanes::store(to, lanes::load(to) - 2.0f * shares[k]);
            }
        }
        if constexpr (COUNT > 1) to_query<BY_POWERS, COUNT / 2>(query, dquery, i);
    }

    template <bool BY_POWERS>
    void to_keys() const {
        const int width = source.key.width;
        for (int64_t s = 0; s < source.keys; s += KEYS)
            for (int i = 0; i < width; ++i) {
                Lanes sums[KEYS]{};
                for (int t = 0; t < pending; ++t) {
                    const Lanes query = lanes::load(queries + (t * width + i) * W);
                    LANES_UNROLL
                    for (int k = 0; k < KEYS; ++k) {
                        const Lanes r = share<BY_POWERS>(query, std::min(s + k, source.keys - 1), i);
                        const Lanes d = dscores[t * stride + s + k] * r;
                        sums[k] += d - d * r;
                    }
                }
                const Lanes scale = 4.0f * lanes::load(source.v + i * W);
                for (int k = 0; k < KEYS && s + k < source.keys; ++k)
                    if (source.real(s + k)) dkey.add(s + k, i, scale * sums[k]);
            }
    }
};

}  // namespace additive
