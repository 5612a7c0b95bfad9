// The selective scan on the CPU, forward and backward, as operators of torch. Arithmetic and states are float32, whatever
// the arguments are.
#include "../operators.h"
#include "../pages.h"
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace scan {

using operators::Optional;
using operators::Tensor;
using operators::view;

constexpr int ENOUGH = 8;  // parts

// Cut in so many for each thread, as a thread that is held up shall leave some to the others.
struct ForwardPass {
    template <bool per_lane>
    static void run(const Problem& p) {
        const Cut cut(p, ENOUGH * p.threads);
        Scratch memory;
        const Boundaries starts(p, cut, memory);
        find_boundaries<per_lane, false>(p, cut, p.initial, starts);
        for_each_part(p, cut, 0, cut.segments, [&](const Part& part, Scratch& scratch) {
            Forward<per_lane>(p, cut, part, starts, scratch).run();
        });
    }
};

// The number of parts, each of which has a room, is a matter of the shapes alone: it decides in which order the gradients
// of B and C are added up.
struct BackwardPass {
    template <bool per_lane>
    static void run(const Problem& p) {
        const Cut cut(p, ENOUGH);
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

template <class Pass>
void run(const Problem& p) {
    lanes::FlushDenormals flush;
    for (const TypedView& result : {p.out, p.du, p.ddelta, p.dz})
        if (result) pages::make_large(result.data, p.rows * p.channels * p.length * result.size());
    if (p.groups_B && p.groups_C) Pass::template run<false>(p);
    else Pass::template run<true>(p);
}

Matrix matrix(const Tensor& m) {
    const int64_t* s = m.strides();
    char* data = static_cast<char*>(m.data());
    switch (m.dim()) {
        case 2: return {data, type(m), 0, s[0], s[1], 0};
        case 3: return {data, type(m), s[0], 0, s[1], s[2]};
        default: return {data, type(m), s[0], s[1], s[2], s[3]};
    }
}

int64_t groups(const Tensor& m) { return m.dim() == 4 ? m.size(1) : m.dim() - 2; }  // 0: constant in time

Problem given(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D,
              const Optional& z, const Optional& bias, const Optional& initial, bool softplus) {
    Problem p{};
    p.rows = u.size(0), p.channels = u.size(1), p.length = u.size(2), p.states = A.size(1);
    p.groups_B = groups(B), p.groups_C = groups(C), p.softplus = softplus;
    p.threads = operators::threads(u.numel() * p.states);
    p.u = view(u), p.delta = view(delta), p.A = view(A), p.B = matrix(B), p.C = matrix(C);
    p.D = view(D), p.z = view(z), p.bias = view(bias), p.initial = view(initial);
    return p;
}

// As scan in cpu.py.
std::tuple<Tensor, Tensor, Tensor> forward(
    const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D,
    const Optional& z, const Optional& bias, const Optional& initial, bool softplus, bool keep
) {
    Problem p = given(u, delta, A, B, C, D, z, bias, initial, softplus);
    const int64_t windows = keep ? (p.length - 1) / WINDOW : 0;
    Tensor out = empty_like(u), last = operators::empty({p.rows, p.channels, p.states});
    Tensor kept = operators::empty({p.rows * windows, p.channels, p.states});
    p.out = view(out), p.last = view(last);
    if (keep) p.kept = view(kept);
    run<ForwardPass>(p);
    return {std::move(out), std::move(last), std::move(kept)};
}

// As scan_backward in cpu.py.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Optional, Optional, Optional, Optional> backward(
    const Optional& dout, const Optional& dlast, const Tensor& kept, const Tensor& u, const Tensor& delta,
    const Tensor& A, const Tensor& B, const Tensor& C, const Optional& D, const Optional& z, const Optional& bias,
    const Optional& initial, bool softplus
) {
    Problem p = given(u, delta, A, B, C, D, z, bias, initial, softplus);
    Tensor du = empty_like(u), ddelta = empty_like(delta), dA = empty_like(A), dB = empty_like(B), dC = empty_like(C);
    Optional dD = empty_like(D), dz = empty_like(z), dbias = empty_like(bias), dinitial = empty_like(initial);
    p.kept = view(kept), p.dout = view(dout), p.dlast = view(dlast);
    p.du = view(du), p.ddelta = view(ddelta), p.dA = view(dA), p.dB = matrix(dB), p.dC = matrix(dC);
    p.dD = view(dD), p.dz = view(dz), p.dbias = view(dbias), p.dinitial = view(dinitial);
    run<BackwardPass>(p);
    return {std::move(du), std::move(ddelta), std::move(dA),    std::move(dB),      std::move(dC),
            std::move(dD), std::move(dz),     std::move(dbias), std::move(dinitial)};
}

const auto registered =
    operators::Registration().add<forward>("selective_scan_cpu").add<backward>("selective_scan_cpu_backward");

}  // namespace scan
