// Sums over time, as exact over long times as over short ones.
#pragma once

#include <algorithm>

#include "parallel.h"

namespace sums {

using lanes::Lanes;

constexpr int FOLD = 16;  // terms to add plainly

// So many sums per block of channels. A few terms are added plainly to operator[], then folded into the block's total,
// which carries its rounding error along (Kahan).
class TimeSums {
    const int count;
    Lanes *recent, *totals, *lost;  // [term], [block][term]

   public:
    TimeSums(int64_t blocks, int64_t terms, parallel::Scratch& scratch)
        : count(static_cast<int>(terms)), recent(scratch.take(count * (1 + 2 * blocks))), totals(recent + count),
          lost(totals + blocks * count) {
        std::fill(recent, lost + blocks * count, Lanes{});
    }

    Lanes& operator[](int term) { return recent[term]; }
    const Lanes* total(int block) const { return totals + block * count; }

    void fold(int block) { fold(block, 0, count); }

    // So many of the terms, from `first` on.
    void fold(int block, int first, int terms) {
        for (int i = first; i < first + terms; ++i) {
            Lanes &sum = totals[block * count + i], &rest = lost[block * count + i];
            const Lanes term = recent[i] - rest, next = sum + term;
            rest = (next - sum) - term;
            sum = next;
            recent[i] = Lanes{};
        }
    }
};

}  // namespace sums
