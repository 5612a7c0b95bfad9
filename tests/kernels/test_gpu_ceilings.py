"""What a GPU's multiprocessors can do at best: its program, without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from triton_programs import CAPABILITIES, compiled, needs_triton, spilled

from kernels import gpu_ceilings


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("reciprocal", [False, True])
def test_compiles_for_gpus_without_spilling(reciprocal: bool, capability: int, tmp_path: Path) -> None:
    programs = importlib.import_module("kernels._triton_ceilings")
    pointers = dict.fromkeys(("numbers", "results"), "fp32")
    constants = {"RECIPROCAL": reciprocal, "BLOCK": gpu_ceilings.BLOCK}
    assert spilled(compiled(programs.repeated, pointers, constants, capability), tmp_path) == 0


def test_there_is_none_where_triton_cannot_run() -> None:
    assert gpu_ceilings.vector("exp", 2**20, torch.device("cpu")) is None
