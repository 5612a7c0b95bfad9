// The selective scan on the CPU: forward and backward behind a plain C interface. Arithmetic and states are float32,
// whatever the arguments are.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace scan {

struct ForwardPass {
    template <bool per_lane>
    static void run(const Problem& p) {
        const Cut cut(p);
        Scratch memory;
        const Boundaries starts(p, cut, memory);
        find_boundaries<per_lane, false>(p, cut, p.initial, starts);
        for_each_part(p, cut, 0, cut.segments, [&](const Part& part, Scratch& scratch) {
            Forward<per_lane>(p, cut, part, starts, scratch).run();
        });
    }
};

struct BackwardPass {
    template <bool per_lane>
    static void run(const Problem& p) {
        const Cut cut(p);
        Scratch memory;
        const Boundaries starts(p, cut, memory);
        const Rooms rooms(p, cut, memory);
        find_boundaries<per_lane, true>(p, cut, p.dlast, starts);
        for_each_part(p, cut, 0, cut.segments, [&](const Part& part, Scratch& scratch) {
            Backward<per_lane>(p, cut, part, starts, rooms, scratch).run();
        });
        rooms.add_up();
    }
};

// 0, or 1 if there was not enough memory.
template <class Pass>
int run(const Problem& p) {
    lanes::FlushDenormals flush;
    try {
        if (p.groups_B && p.groups_C) Pass::template run<false>(p);
        else Pass::template run<true>(p);
    } catch (const std::bad_alloc&) {
        return 1;
    }
    return 0;
}

}  // namespace scan

extern "C" int selective_scan_forward(const scan::Problem* p) { return scan::run<scan::ForwardPass>(*p); }
extern "C" int selective_scan_backward(const scan::Problem* p) { return scan::run<scan::BackwardPass>(*p); }
