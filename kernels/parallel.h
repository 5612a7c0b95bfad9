// Threads for independent tasks, and scratch memory for each.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "lanes.h"

namespace parallel {

// Memory of one thread, handed out piece by piece as arrays of lanes.
class Scratch {
    struct Free {
        void operator()(lanes::Lanes* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::unique_ptr<lanes::Lanes[], Free> memory;
    lanes::Lanes* next;

   public:
    explicit Scratch(int64_t count)
        : memory(static_cast<lanes::Lanes*>(::operator new[](count * sizeof(lanes::Lanes), std::align_val_t(64)))),
          next(memory.get()) {}

    void reset() { next = memory.get(); }
    lanes::Lanes* take(int64_t count) {
        next += count;
        return next - count;
    }
};

// work(task, scratch) for every task, on at most so many threads. Which thread takes which task is left to chance, so
// tasks must write to places of their own: then the result depends on neither.
template <class Work>
void run(int64_t tasks, int64_t threads, int64_t scratch_lanes, const Work& work) {
    threads = std::max<int64_t>(1, std::min(threads, tasks));
    std::vector<Scratch> scratch;
    for (int64_t i = 0; i < threads; ++i) scratch.emplace_back(scratch_lanes);
    std::atomic<int64_t> next{0};
    auto loop = [&](Scratch& own) {
        lanes::FlushDenormals flush;
        for (int64_t task; (task = next.fetch_add(1)) < tasks; own.reset()) work(task, own);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads);
    try {
        for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(loop, std::ref(scratch[i]));
    } catch (const std::system_error&) {
        // no more threads to be had: those there are do the work
    }
    loop(scratch[0]);
    for (auto& helper : helpers) helper.join();
}

}  // namespace parallel
