"""The threads of compiled operations: torch's where there is torch, else some of their own."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

import kernels

KERNELS = Path(kernels.__file__).parent
ROWS, FEATURES, EPS = 640, 24, 1e-5

SQUARES = """
#include "parallel.h"
extern "C" bool squares(int64_t count, int64_t threads, int64_t* out) {
    return parallel::run(count, threads, [&](int64_t i, parallel::Scratch&) { out[i] = i * i; });
}
"""

WITHOUT_TORCH = """
import ctypes, sys
out = (ctypes.c_int64 * 1000)()
assert ctypes.CDLL(sys.argv[1]).squares(ctypes.c_int64(1000), ctypes.c_int64(3), out)
assert "torch" not in sys.modules
assert list(out) == [i * i for i in range(1000)]
"""


def norm(_: int = 0) -> torch.Tensor:
    x = torch.arange(ROWS * FEATURES, dtype=torch.float32).view(ROWS, FEATURES)
    return kernels.rms_norm(x, torch.ones(FEATURES), EPS, backend="cpu")


def test_there_are_threads_without_torch(tmp_path: Path) -> None:
    library = tmp_path / "squares.so"
    command = ["g++", "-std=gnu++17", "-shared", "-fPIC", "-pthread", f"-I{KERNELS}", "-x", "c++", "-", "-o", library]
    subprocess.run(command, input=SQUARES, text=True, check=True)
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH, library], check=True)


def test_several_callers_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = norm()
        with ThreadPoolExecutor(4) as callers:
            assert all(torch.equal(out, expected) for out in callers.map(norm, range(40)))
    finally:
        torch.set_num_threads(before)
