// Threads for independent tasks, and scratch memory for each.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "lanes.h"

namespace parallel {

// Arrays that are read or written in step should not begin at the same place of a page, but so many lanes apart: a cache
// that guesses by a part of an address where a line lies would take one for the other, time after time.
constexpr int STAGGER = 8;

// The memory of one thread: arrays of lanes, allocated for its first task and handed out again, in the same order and
// sizes, to the next. Small ones lie in the object itself: to ask for them would take longer than to use them.
class Scratch {
    static constexpr int64_t SMALL = 64, PAGE = 4096;
    struct Free {
        void operator()(lanes::Lanes* p) const { ::operator delete[](p, std::align_val_t(PAGE)); }
    };
    alignas(64) lanes::Lanes small[SMALL];
    int64_t used = 0;
    std::vector<std::unique_ptr<lanes::Lanes[], Free>> arrays;
    size_t next = 0;

   public:
    void start_over() { used = next = 0; }

    lanes::Lanes* take(int64_t count) {
        if (used + count <= SMALL) return small + std::exchange(used, used + count);
        const int64_t place = next % 8 * STAGGER;
        if (next == arrays.size()) {
            void* memory = ::operator new[]((place + count) * sizeof(lanes::Lanes), std::align_val_t(PAGE));
            arrays.emplace_back(static_cast<lanes::Lanes*>(memory));
        }
        return arrays[next++].get() + place;
    }

    // What is made of arrays of lanes alone.
    template <class Arrays>
    Arrays& take() {
        return *reinterpret_cast<Arrays*>(take(sizeof(Arrays) / sizeof(lanes::Lanes)));
    }
};

// What GCC makes of an OpenMP parallel region: run(argument) on as many threads as the caller's settings say (threads 0).
using Region = void (*)(void (*run)(void*), void* argument, unsigned threads, unsigned flags);

// That of the OpenMP which torch has loaded for all; null where there is none. Its threads are there already, and those
// that have done torch's last product still look for work: others of ours would have to share the processors with them.
inline Region torchs_region() {
    static const auto found = reinterpret_cast<Region>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    return found;
}

// loop() on so many threads, the caller's being one, or on fewer where there are no more to be had.
template <class Loop>
void on_threads(int64_t threads, const Loop& loop) {
    if (threads <= 1) return loop();
    if (const Region region = torchs_region()) {
        auto join = [&loop, wanted = std::atomic<int64_t>(threads)]() mutable {
            if (wanted.fetch_sub(1) > 0) loop();
        };
        return region([](void* argument) { (*static_cast<decltype(join)*>(argument))(); }, &join, 0, 0);
    }
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < threads; ++i) helpers.emplace_back(loop);
    } catch (const std::exception&) {
        // no more threads to be had: those there are do the work
    }
    loop();
    for (auto& helper : helpers) helper.join();
}

// work(task, scratch) for every task, on at most so many threads; false if memory ran out. Which thread takes which
// task is left to chance, so tasks must write to places of their own: then the result depends on neither.
template <class Work>
bool run(int64_t tasks, int64_t threads, const Work& work) {
    std::atomic<int64_t> next{0};
    std::atomic<bool> enough_memory{true};
    on_threads(std::min(threads, tasks), [&] {
        lanes::FlushDenormals flush;
        try {
            Scratch scratch;
            for (int64_t task; (task = next.fetch_add(1)) < tasks; scratch.start_over()) work(task, scratch);
        } catch (const std::bad_alloc&) {
            enough_memory = false;
        }
    });
    return enough_memory;
}

}  // namespace parallel
