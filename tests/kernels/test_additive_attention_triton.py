"""The Triton backend of additive attention, without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from triton_programs import CAPABILITIES, compiled, interpret, needs_triton, spilled

from kernels.additive_attention import triton as backend

PROGRAMS = ("forward", "backward_of_queries", "backward_of_keys")


@needs_triton
def test_keeps_the_contract_under_the_interpreter() -> None:
    """The interpreter cuts bfloat16 off where a GPU rounds it, and takes long for 1000 keys."""
    interpret("test_additive_attention.py", "triton and not bfloat16 and not sizes4")


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("sizes", [(64, 64, 256, 512), (1, 128, 128, 256), (1, 1, 1, 1)], ids=str)
def test_compiles_for_gpus_without_spilling(
    sizes: tuple[int, ...], program: str, capability: int, tmp_path: Path
) -> None:
    queries, keys, hidden, width = sizes
    programs = importlib.import_module("kernels.additive_attention._triton_kernels")
    short = dict.fromkeys(("query", "key", "value", "dquery", "dkey", "dvalue"), "bf16")
    pointers = short | dict.fromkeys(("v", "context", "lse", "inner", "dcontext", "dv"), "fp32") | {"mask": "i1"}
    ones = dict.fromkeys(("q_unit", "k_unit", "value_feature", "v_unit", "mask_key"), 1)
    ones |= {name: 1 for name, size in zip("TSHE", sizes, strict=True) if size == 1}
    tile = backend.tile_of(torch.empty(1, queries, hidden), torch.empty(1, keys, width))
    constants = ones | {"HAS_MASK": True} | tile
    assert spilled(compiled(getattr(programs, program), pointers, constants, capability), tmp_path) == 0


@pytest.mark.parametrize("hidden", [1, 100, 5000])
@pytest.mark.parametrize("width", [1, 300, 3000])
def test_a_tile_is_never_empty_and_keeps_to_its_room(hidden: int, width: int) -> None:
    tile = backend.tile_of(torch.empty(1, 7, hidden), torch.empty(1, 9, width))
    assert tile["HP"] >= hidden
    assert tile["EP"] >= width
    assert tile["BT"] * tile["BS"] * max(tile["HP"], tile["EP"]) <= max(4096, tile["HP"], tile["EP"])


def test_says_why_it_cannot_run() -> None:
    assert "serves CUDA tensors, not cpu" in (backend.why_not(torch.float32, torch.device("cpu")) or "")
    assert "float64" in (backend.why_not(torch.float64, torch.device("cuda")) or "")
