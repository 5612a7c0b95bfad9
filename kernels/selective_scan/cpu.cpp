// The selective scan in float32 on the CPU: forward and backward behind a plain C interface.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace {

template <class Pass>
int run_pass(const scan::Problem& p) {
    const auto work = [&](int64_t task, scan::Scratch& scratch) { Pass(p, task, scratch).run(); };
    return parallel::run(scan::tasks(p), p.threads, work) ? 0 : 1;
}

template <template <bool> class Pass>
int run(const scan::Problem& p) {
    return p.constant_B || p.constant_C ? run_pass<Pass<true>>(p) : run_pass<Pass<false>>(p);
}

}  // namespace

// Both return 0, or 1 if there was not enough memory.
extern "C" int selective_scan_forward(const scan::Problem* p) { return run<scan::Forward>(*p); }
extern "C" int selective_scan_backward(const scan::Problem* p) { return run<scan::Backward>(*p); }
