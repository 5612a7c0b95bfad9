// What this processor's vector unit can do at best: a function of numbers that lie in its nearest cache, over and over.
#include "functions.h"
#include "parallel.h"

namespace {

using lanes::Lanes;

constexpr int VECTORS = 64, REPEATS = 256;  // per task: 4 KiB in AVX-512, read and written
constexpr int FEW = 4;                      // vectors side by side

template <class Function>
int run(int64_t tasks, int64_t threads, Function function) {
    return parallel::run(tasks, threads, [&](int64_t, parallel::Scratch& scratch) {
        Lanes *in = scratch.take(VECTORS), *out = scratch.take(VECTORS);
        for (int i = 0; i < VECTORS; ++i)
            for (int j = 0; j < lanes::W; ++j) in[i][j] = static_cast<float>(i * lanes::W + j) / -256.0f;
        for (int repeat = 0; repeat < REPEATS; ++repeat) {
            for (int i = 0; i < VECTORS; i += FEW) function(in + i, out + i);
            asm volatile("" : : "r"(out) : "memory");
        }
    }) ? 0 : 1;
}

}  // namespace

extern "C" int ceiling_numbers_per_task() { return VECTORS * REPEATS * lanes::W; }

extern "C" int ceiling_exp(int64_t tasks, int64_t threads) {
    const lanes::Exp2 exp2;
    return run(tasks, threads, [exp2](const Lanes* x, Lanes* y) {
        exp2.powers<FEW>(lanes::all(lanes::LOG2E), x, y);
    });
}

extern "C" int ceiling_reciprocal(int64_t tasks, int64_t threads) {
    return run(tasks, threads, [](const Lanes* x, Lanes* y) {
        for (int i = 0; i < FEW; ++i) y[i] = lanes::reciprocal(1.0f - x[i]);
    });
}
