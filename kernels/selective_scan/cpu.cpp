// The selective scan in float32 on the CPU: forward and backward behind a plain C interface.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace {

template <class Pass>
void run_pass(const scan::Problem& p) {
    parallel::run(scan::tasks(p), p.threads, Pass::scratch_lanes(p),
                  [&](int64_t task, scan::Scratch& scratch) { Pass(p, task, scratch).run(); });
}

template <template <bool> class Pass>
int run(const scan::Problem& p) {
    try {
        if (p.constant_B || p.constant_C) run_pass<Pass<true>>(p);
        else run_pass<Pass<false>>(p);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace

// Both return 0, or 1 if there was not enough memory.
extern "C" int selective_scan_forward(const scan::Problem* p) { return run<scan::Forward>(*p); }
extern "C" int selective_scan_backward(const scan::Problem* p) { return run<scan::Backward>(*p); }
