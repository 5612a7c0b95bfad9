// Pages of memory that is about to be written for the first time.
#pragma once

#include <sys/mman.h>

#include <cstdint>

namespace pages {

// Asks for large pages, of which a large tensor needs a few instead of thousands: the system clears each at the first
// write to it, and the interruption takes longer than what is written there. Only pages that lie within are asked for.
inline void make_large(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    constexpr uintptr_t LARGE = 1 << 21;
    const uintptr_t from = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (from + LARGE - 1) / LARGE * LARGE, end = (from + bytes) / LARGE * LARGE;
    if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // if refused: small ones
#else
    (void)data, (void)bytes;
#endif
}

}  // namespace pages
