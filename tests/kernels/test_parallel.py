"""The threads of compiled operations: torch's where there is torch, else some of their own."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

from kernels.rms_norm import cpu

ROWS, FEATURES, EPS = 640, 24, 1e-5

WITHOUT_TORCH = f"""
import ctypes, struct, sys

vectors = (ctypes.c_float * {ROWS * FEATURES})(*range({ROWS * FEATURES}))
weight = (ctypes.c_float * {FEATURES})(*[1.0] * {FEATURES})
out = (ctypes.c_float * {ROWS * FEATURES})()
addresses = map(ctypes.addressof, (vectors, weight, out))
problem = struct.pack("3qd3q", {ROWS}, {FEATURES}, 3, {EPS}, *addresses)
assert ctypes.CDLL(sys.argv[1]).rms_norm_forward(problem) == 0
assert "torch" not in sys.modules
sys.stdout.buffer.write(out)
"""


def norm(_: int = 0) -> torch.Tensor:
    x = torch.arange(ROWS * FEATURES, dtype=torch.float32).view(ROWS, FEATURES)
    return cpu.rms_norm(x, torch.ones(FEATURES), EPS)


def test_a_library_has_threads_without_torch() -> None:
    path = cpu.library()._name
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, path], capture_output=True, check=True)
    assert done.stdout == norm().numpy().tobytes()


def test_several_callers_at_once() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        expected = norm()
        with ThreadPoolExecutor(4) as callers:
            assert all(torch.equal(out, expected) for out in callers.map(norm, range(40)))
    finally:
        torch.set_num_threads(before)
