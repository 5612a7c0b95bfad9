"""The C++ backend of the selective scan as an operator: torch's own checks, threads, memory, other processors."""

from __future__ import annotations

import platform
import shutil
import subprocess
from ctypes import CDLL
from pathlib import Path

import pytest
import torch
from scans import NAMES, RESULTS, Case, as_float32, results, scan, truth
from tolerance import assert_all_as_good
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from kernels.selective_scan import _cpu_interface, cpu


def operands(case: Case) -> list[Tensor | None]:
    """The tensors in the order of the operator."""
    tensors = as_float32(case)
    return [tensors.get(name) for name in NAMES]


def test_opcheck() -> None:
    tensors = operands(Case(70))
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    torch.library.opcheck(cpu.scan, (*leaves, True, True))
    out, last, kept = cpu.scan(*tensors, True, True)
    torch.library.opcheck(cpu.scan_backward, (out, last, kept, *tensors, True))


def test_opcheck_without_options() -> None:
    tensors = operands(Case(6, options=False, groups_B=0, groups_C=0))
    torch.library.opcheck(cpu.scan, (*tensors, False, False))


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(70)).items()}
    values = compiled(leaves, "auto")
    assert all(map(torch.equal, values, scan(leaves, "cpu")))
    gradients = torch.autograd.grad(values[0].sum(), list(leaves.values()))
    assert all(map(torch.equal, gradients, torch.autograd.grad(scan(leaves, "cpu")[0].sum(), list(leaves.values()))))


def test_fake_tensors_have_the_shapes_and_strides() -> None:
    tensors = as_float32(Case(70, channel_last=True))
    real = scan(tensors, "cpu")
    with FakeTensorMode() as mode:
        fake = scan({name: mode.from_tensor(tensor) for name, tensor in tensors.items()}, "auto")
    assert [(f.shape, f.stride(), f.dtype) for f in fake] == [(r.shape, r.stride(), r.dtype) for r in real]


def test_second_derivatives_name_the_reference() -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(4)).items()}
    (gradient,) = torch.autograd.grad(scan(leaves, "cpu")[0].sum(), leaves["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


def test_gradient_of_either_result_alone() -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(70)).items()}
    for result in (0, 1):
        values = [scan(leaves, backend)[result] for backend in ("cpu", "reference")]
        fast, plain = (torch.autograd.grad(value.sum(), [leaves["u"], leaves["A"]]) for value in values)
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-4)


def test_bits_depend_neither_on_the_run_nor_on_the_threads() -> None:
    tensors = as_float32(Case(300, channels=160, states=16, groups_B=1, groups_C=1, rows=4))
    expected = results(tensors, "cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, results(tensors, "cpu"), expected))
    finally:
        torch.set_num_threads(before)


def test_sums_over_long_times_stay_exact() -> None:
    case = Case(4000, channels=3, states=2, groups_B=1, groups_C=1, rows=1)
    tensors = as_float32(case)
    gradient = results(tensors, "cpu")[RESULTS.index("gradient of D")]
    silu = torch.nn.functional.silu(tensors["z"].double())
    cotangent = torch.randn(1, 3, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = (cotangent * silu * tensors["u"].double()).sum((0, 2))
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=4e-7 * float(exact.abs().max()))


def test_memory_that_runs_out_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Exhausted:
        def selective_scan_forward(self, problem: object) -> int:
            return 1

    monkeypatch.setattr(_cpu_interface, "library", Exhausted)
    with pytest.raises(MemoryError, match="selective_scan_forward: out of memory"):
        cpu.scan(*operands(Case(4)), True, False)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86-64 levels")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_narrower_processors(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = shutil.which("g++")
    assert compiler is not None
    source = Path(cpu.__file__).with_name("cpu.cpp")
    sizes = [f"-DSCAN_WINDOW={_cpu_interface.WINDOW}", f"-DSCAN_PART={_cpu_interface.PART}"]
    flags = ["-O1", f"-march={level}", "-std=gnu++17", "-shared", "-fPIC", "-pthread", *sizes]
    subprocess.run([compiler, *flags, str(source), "-o", str(tmp_path / "scan.so")], check=True)
    library = CDLL(str(tmp_path / "scan.so"))
    monkeypatch.setattr(_cpu_interface, "library", lambda: library)
    for case in (Case(65), Case(20, channels=40, states=16, groups_B=1, groups_C=1, channel_last=True)):
        assert_all_as_good(RESULTS, results(as_float32(case), "cpu"), *truth(case))


def test_refuses_what_it_cannot_run() -> None:
    with pytest.raises(ValueError, match=r"computes in float32, not torch\.float64: take backend='reference'"):
        scan(Case(4).draw(), "cpu")
    assert "serves CPU tensors, not cuda" in (kernels.backends("selective_scan", torch.float32, "cuda")["cpu"] or "")


@pytest.mark.parametrize("keep", [False, True])
def test_tensors_without_memory_have_results_without_memory(keep: bool) -> None:
    tensors = {name: tensor.to("meta").requires_grad_(keep) for name, tensor in as_float32(Case(70)).items()}
    out, last_state = scan(tensors, "cpu")
    assert out.is_meta
    assert out.shape == tensors["u"].shape
    assert last_state.shape == (*out.shape[:2], tensors["A"].shape[1])
    if keep:
        (out.sum() + last_state.sum()).backward()
        assert all(tensor.grad is not None and tensor.grad.is_meta for tensor in tensors.values())
