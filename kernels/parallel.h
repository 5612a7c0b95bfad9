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

// The memory of one thread: arrays of lanes, allocated for its first task and handed out again, in the same order and
// sizes, to the next.
class Scratch {
    struct Free {
        void operator()(lanes::Lanes* p) const { ::operator delete[](p, std::align_val_t(64)); }
    };
    std::vector<std::unique_ptr<lanes::Lanes[], Free>> arrays;
    size_t next = 0;

   public:
    void start_over() { next = 0; }

    lanes::Lanes* take(int64_t count) {
        if (next == arrays.size()) {
            void* memory = ::operator new[](std::max<int64_t>(1, count) * sizeof(lanes::Lanes), std::align_val_t(64));
            arrays.emplace_back(static_cast<lanes::Lanes*>(memory));
        }
        return arrays[next++].get();
    }
};

// work(task, scratch) for every task, on at most so many threads; false if memory ran out. Which thread takes which
// task is left to chance, so tasks must write to places of their own: then the result depends on neither.
template <class Work>
bool run(int64_t tasks, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> enough_memory{true};
    auto loop = [&] {
        lanes::FlushDenormals flush;
        try {
            Scratch scratch;
            for (int64_t task; (task = next.fetch_add(1)) < tasks; scratch.start_over()) work(task, scratch);
        } catch (const std::bad_alloc&) {
            enough_memory = false;
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min(threads, tasks); ++i) helpers.emplace_back(loop);
    } catch (const std::exception&) {
        // no more threads to be had: those there are do the work
    }
    loop();
    for (auto& helper : helpers) helper.join();
    return enough_memory;
}

}  // namespace parallel
