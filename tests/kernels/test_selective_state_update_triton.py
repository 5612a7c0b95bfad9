"""The Triton backend of one step of the scan, without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from triton_programs import CAPABILITIES, compiled, interpret, needs_triton, spilled

from kernels.selective_state_update import triton as backend


@needs_triton
def test_keeps_the_contract_under_the_interpreter() -> None:
    interpret("test_selective_state_update.py", "triton")


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_compiles_for_gpus_without_spilling(capability: int, tmp_path: Path) -> None:
    programs = importlib.import_module("kernels.selective_state_update._triton_kernels")
    short = dict.fromkeys(("x", "dt", "B", "C", "z", "out"), "bf16")
    pointers = short | dict.fromkeys(("state", "new", "A", "D", "bias"), "fp32")
    flags = dict.fromkeys(("HAS_D", "HAS_Z", "HAS_BIAS", "SOFTPLUS"), True)
    constants = flags | {"BD": backend.NUMBERS // 16, "NP": 16}
    ones = dict.fromkeys(("channels_all", "N", "per_group_B", "per_group_C", "state_state", "new_state"), 1)
    for more in ({}, ones | {"BD": 1, "NP": 1} | dict.fromkeys(flags, False)):
        assert spilled(compiled(programs.update, pointers, constants | more, capability), tmp_path) == 0


@needs_triton
def test_results_are_known_without_running() -> None:
    """What needs no program to run: shapes, strides and dtypes of the results."""
    state, x = torch.empty(2, 8, 4, dtype=torch.bfloat16, device="meta"), torch.empty(2, 8, device="meta")
    A, B = torch.empty(8, 4, device="meta"), torch.empty(2, 1, 4, device="meta")
    out, new = backend.update(state, x, x, A, B, B, None, None, None, True)
    assert (out.shape, out.dtype, new.shape, new.dtype) == (x.shape, x.dtype, state.shape, state.dtype)
    assert backend.update_(state, x, x, A, B, B, None, None, None, True).shape == x.shape


def test_says_why_it_cannot_run() -> None:
    assert "serves CUDA tensors, not cpu" in (backend.why_not(torch.float32, torch.device("cpu")) or "")
    assert "float64" in (backend.why_not(torch.float64, torch.device("cuda")) or "")
