"""The Triton backend of the selective scan: under Triton's interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from scans import NAMES, RESULTS, Case, as_float32, results, truth
from tolerance import assert_all_as_good, nan_in_fresh_memory

from kernels.selective_scan import triton as backend

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
KERNELS = "kernels.selective_scan._triton_kernels"
interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process of its own, below"
)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_under_the_interpreter() -> None:
    """Triton reads the switch when it is imported: the tests marked `interpreted` need a process of their own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@needs_triton
@interpreted
@pytest.mark.parametrize(
    "case",
    [
        Case(1, channels=3, groups_B=1, groups_C=1),
        Case(33, channels=6, states=2, rows=1),
        Case(34, channels=3, states=3, groups_B=1, groups_C=1, options=False, channel_last=True),
        Case(3, channels=2, states=2, groups_B=0, groups_C=1, rows=1),
    ],
    ids=lambda case: f"{case.length}-{case.channels}-{case.states}-{case.groups_B}-{case.groups_C}",
)
def test_values_and_gradients(case: Case) -> None:
    with nan_in_fresh_memory():
        actual = results(as_float32(case), "triton")
    assert_all_as_good(RESULTS[: len(actual)], actual, *truth(case))


@needs_triton
@interpreted
def test_workspace_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "WORKSPACE", 1)
    case = Case(40, channels=2, states=2, rows=1)
    assert_all_as_good(RESULTS, results(as_float32(case), "triton"), *truth(case))


@needs_triton
@interpreted
def test_opcheck() -> None:
    tensors = [as_float32(Case(2, channels=1, states=2, groups_B=1, groups_C=1, rows=1)).get(name) for name in NAMES]
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    torch.library.opcheck(backend.scan, (*leaves, True, True))
    out, last, kept = backend.scan(*tensors, True, True)
    torch.library.opcheck(backend.scan_backward, (out, last, kept, *tensors, True))


def test_rows_are_counted_on_the_axis_of_the_grid_that_has_room() -> None:
    """The others end at 65535 programs."""
    u, B = torch.empty(70000, 12, 1, device="meta"), torch.empty(70000, 2, 3, 1, device="meta")
    assert backend._grid(u, B) == (70000 * 2 * 2,)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled there")
@pytest.mark.parametrize("capability", [80, 90, 100])
def test_compiles_for_gpus(capability: int) -> None:
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    programs = importlib.import_module(KERNELS)
    flags = {"HAS_D": True, "HAS_Z": True, "HAS_BIAS": True, "SOFTPLUS": True, "BD": 4, "NP": 16, "T": backend.CHUNK}
    more = {"HAS_INITIAL": True, "KEEP": True}
    for program, constants in ((programs.forward, flags | more), (programs.backward, flags)):
        signature = {name: _type(name, constants) for name in program.arg_names}
        source = compiler.ASTSource(program, signature, constants)
        image = triton.compile(source, target=target, options={"enable_fp_fusion": True})
        assert image.asm["cubin"]


def _type(name: str, constants: dict[str, object]) -> str:
    if name in constants:
        return "constexpr"
    short = ("u", "delta", "B", "C", "z", "dout", "out")
    if name in short:
        return "*bf16"
    numbers = ("channels_all", "L", "N", "per_group", "groups", "rows", "chunks", "all_chunks", "first_chunk")
    return "i64" if name in numbers or "_" in name else "*fp32"


def test_says_why_it_cannot_run() -> None:
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert "serves CUDA tensors, not cpu" in (backend.why_not(torch.float32, torch.device("cpu")) or "")
    assert "float64" in (backend.why_not(torch.float64, torch.device("cuda")) or "")
