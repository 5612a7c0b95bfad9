// Softmax attention in float32 on the CPU, forward and backward, behind a plain C interface.
//
// A block of queries meets the keys block by block, so that scores never leave the nearest cache (Dao et al. 2022,
// algorithms 1 and 4). Everything is copied into rows or panels padded with zeros: then every product is one of whole
// tiles. A task is a row and a head going forward; going back a row and a head of the keys, whose gradients its groups of
// queries share.
#include "cpu_backward.h"
#include "cpu_forward.h"

namespace attention {

template <class Pass>
int run(const Problem& p, int64_t tasks) {
    const auto work = [&](int64_t task, Scratch& scratch) { Pass(p, scratch).run(task); };
    return parallel::run(tasks, p.threads, work) ? 0 : 1;
}

}  // namespace attention

using attention::Backward, attention::Forward, attention::Problem;

// Both return 0, or 1 if there was not enough memory.
extern "C" int attention_forward(const Problem* p) {
    return attention::run<Forward>(*p, p->rows * p->heads * p->groups);
}
extern "C" int attention_backward(const Problem* p) { return attention::run<Backward>(*p, p->rows * p->heads); }
