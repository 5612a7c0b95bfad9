"""The Triton backends of the causal convolution and of its step, without a GPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from triton_programs import CAPABILITIES, compiled, interpret, needs_triton, spilled

from kernels.causal_conv1d import triton as convolution
from kernels.causal_conv1d_update import triton as step

# The interpreter cuts bfloat16 off where a GPU rounds it, and takes long for what is long.
CHOSEN = "triton and not bfloat16 and not 600-20 and not 1000-True and not 1000-False-None and not 63 and not 64"


@needs_triton
@pytest.mark.parametrize("operation", ["causal_conv1d", "causal_conv1d_update"])
def test_keeps_the_contract_under_the_interpreter(operation: str) -> None:
    interpret(f"test_{operation}.py", CHOSEN)


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("channel_last", [False, True])
def test_compiles_for_gpus_without_spilling(channel_last: bool, capability: int, tmp_path: Path) -> None:
    programs = importlib.import_module("kernels.causal_conv1d._triton_kernels")
    x = torch.empty(1, 64, 512).mT if channel_last else torch.empty(1, 64, 512)
    short = dict.fromkeys(("x", "initial", "dout", "out", "dx", "dinitial"), "bf16")
    pointers = short | dict.fromkeys(("weight", "bias", "dweight", "dbias"), "fp32")
    flags = {"HAS_BIAS": True, "HAS_INITIAL": True, "SILU": True, "W": 4}
    forward = flags | convolution.tile_of(x, 0) | _steps_of_one("x", "out", channel_last=channel_last)
    backward = (
        flags | {"WP": 4} | convolution.tile_of(x, 3) | _steps_of_one("x", "dout", "dx", channel_last=channel_last)
    )
    assert spilled(compiled(programs.forward, pointers, forward, capability), tmp_path) == 0
    warps = convolution.WARPS_BACKWARD
    assert spilled(compiled(programs.backward, pointers, backward, capability, warps), tmp_path) == 0


@needs_triton
def test_compiles_for_one_step_of_one_channel(tmp_path: Path) -> None:
    programs = importlib.import_module("kernels.causal_conv1d._triton_kernels")
    pointers = dict.fromkeys(("x", "initial", "dout", "out", "dx", "dinitial"), "fp16")
    pointers |= dict.fromkeys(("weight", "bias", "dweight", "dbias"), "fp32")
    flags = {"HAS_BIAS": False, "HAS_INITIAL": False, "SILU": False, "W": 2, "BD": 1}
    ones = dict.fromkeys(("channels_all", "L", "tiles", "x_step", "x_channel", "x_row", "w_tap"), 1)
    assert spilled(compiled(programs.forward, pointers, flags | ones | {"T": 1}, 90), tmp_path) == 0
    assert (
        spilled(compiled(programs.backward, pointers, flags | ones | {"T": 2, "WP": 2, "pieces": 1}, 90), tmp_path) == 0
    )


def _steps_of_one(*names: str, channel_last: bool) -> dict[str, int]:
    """The strides that are 1, which Triton makes constants of."""
    return {f"{name}_{'channel' if channel_last else 'step'}": 1 for name in names}


@needs_triton
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_a_step_compiles_for_gpus_without_spilling(capability: int, tmp_path: Path) -> None:
    programs = importlib.import_module("kernels.causal_conv1d_update._triton_kernels")
    pointers = dict.fromkeys(("x", "states", "out"), "bf16") | dict.fromkeys(("weight", "bias"), "fp32")
    constants = {"HAS_BIAS": True, "SILU": True, "W": 4, "BD": step.CHANNELS}
    for more in ({}, {"channels_all": 1, "W": 1, "HAS_BIAS": False}):
        assert spilled(compiled(programs.update, pointers, constants | more, capability), tmp_path) == 0


@pytest.mark.parametrize("backend", [convolution, step])
def test_says_why_it_cannot_run(backend) -> None:
    assert "serves CUDA tensors, not cpu" in (backend.why_not(torch.float32, torch.device("cpu")) or "")
    assert "float64" in (backend.why_not(torch.float64, torch.device("cuda")) or "")
