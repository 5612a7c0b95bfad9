"""Operators in C++: torch's functions as operators.h declares them, and what becomes of tensors they cannot read."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import include_paths

import kernels
from kernels.swiglu import cpu as swiglu

BOTH = """
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>
#include "operators.h"
"""


def test_torchs_functions_are_declared_as_torch_declares_them() -> None:
    compiler = shutil.which("g++")
    assert compiler is not None
    folders = [f"-I{folder}" for folder in (Path(kernels.__file__).parent, *include_paths())]
    command = [compiler, "-std=gnu++17", "-fsyntax-only", *folders, "-x", "c++", "-"]
    subprocess.run(command, input=BOTH, text=True, check=True)


@pytest.mark.parametrize("x", [torch.ones(4, 6, dtype=torch.float64), torch.ones(6, 4).mT])
def test_tensors_that_cannot_be_read_are_refused(x: torch.Tensor) -> None:
    assert swiglu.why_not(None, None) is None
    with pytest.raises(ValueError, match="expected contiguous tensors of float32"):
        swiglu.gate(x)


def test_vmap_gives_what_each_call_gives() -> None:
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(torch.vmap(kernels.swiglu)(x), kernels.swiglu(x, backend="reference"))
