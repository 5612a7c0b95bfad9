"""What a GPU's multiprocessors can do at best, in Triton's language. Import this only where Triton is."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def repeated(numbers, results, repeats, RECIPROCAL: tl.constexpr, BLOCK: tl.constexpr):
    """A function of a function of a number and so on, `repeats` times: memory plays no part."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(numbers + at)
    for _ in range(repeats):
        x = 1.0 / (1.0 + x) if RECIPROCAL else tl.exp2(-x)
    tl.store(results + at, x)
