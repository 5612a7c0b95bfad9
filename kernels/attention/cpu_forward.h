// out and the normalizers from queries, keys and values.
#pragma once

#include <utility>

#include "cpu_pass.h"

namespace attention {

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

}  // namespace attention
