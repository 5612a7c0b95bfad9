"""Which backend runs, and what is said about it."""

from __future__ import annotations

import importlib
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from scans import Case, as_float32, scan
from torch import Tensor

import kernels


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    kernels.forget()
    yield
    kernels.forget()


@pytest.fixture
def without_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiled backend of the scan cannot be had."""
    cpu = importlib.import_module("kernels.selective_scan.cpu")
    monkeypatch.setattr(cpu, "why_not", lambda dtype, device: "no C++ compiler: install g++")


def test_an_operation_is_a_folder_and_a_backend_a_file() -> None:
    folder = Path(kernels.__file__).parent
    assert kernels.operations() == sorted(f.name for f in folder.iterdir() if (f / "reference.py").exists())
    for op in kernels.operations():
        files = {file.stem for file in (folder / op).glob("[!_]*.py")}
        assert set(kernels.backends(op)) == files


def test_auto_takes_the_fastest_that_can_run() -> None:
    assert list(kernels.backends("selective_scan")) == ["cpu", "cuda", "triton", "chunked", "reference", "mamba_ssm"]
    scan(as_float32(Case(3)), "auto")
    assert kernels.ran() == {"selective_scan": ["cpu"]}


def test_float64_goes_to_the_reference_without_a_word() -> None:
    scan(Case(3).draw(), "auto")
    assert kernels.ran() == {"selective_scan": ["reference"]}
    assert kernels.fallbacks() == {}


def test_one_float64_argument_is_enough() -> None:
    tensors = as_float32(Case(3))
    scan(tensors | {"A": tensors["A"].double()}, "auto")
    assert kernels.ran() == {"selective_scan": ["reference"]}


def test_ran_keeps_the_order_of_first_use_until_forgotten() -> None:
    for backend in ("chunked", "reference", "chunked"):
        scan(as_float32(Case(3)), backend)
    assert kernels.ran() == {"selective_scan": ["chunked", "reference"]}
    kernels.forget()
    assert kernels.ran() == {}


def test_what_ran_returns_is_a_copy() -> None:
    scan(as_float32(Case(3)), "auto")
    kernels.ran()["selective_scan"].append("nonsense")
    assert kernels.ran() == {"selective_scan": ["cpu"]}


@pytest.mark.usefixtures("without_cpu")
def test_a_slow_fallback_is_said_aloud_once() -> None:
    tensors = as_float32(Case(3))
    with pytest.warns(UserWarning, match="slow backend 'chunked': cpu: no C.. compiler: install g"):
        scan(tensors, "auto")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scan(tensors, "auto")
    assert kernels.ran() == {"selective_scan": ["chunked"]}
    assert kernels.fallbacks() == {"selective_scan": "chunked"}


def test_a_slow_backend_asked_for_by_name_is_no_fallback() -> None:
    scan(as_float32(Case(3)), "chunked")
    assert kernels.fallbacks() == {}


@pytest.mark.usefixtures("without_cpu")
def test_a_backend_asked_for_by_name_never_becomes_another() -> None:
    with pytest.raises(ValueError, match=r"selective_scan: the backend 'cpu' cannot run: no C\+\+ compiler: install g"):
        scan(as_float32(Case(3)), "cpu")
    assert kernels.ran() == {}


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(
        ValueError, match="no backend 'gpu': expected 'auto' or one of cpu, cuda, triton, chunked, reference, mamba_ssm"
    ):
        scan(as_float32(Case(3)), "gpu")
    with pytest.raises(ValueError, match="unknown operation 'scan': expected one of additive_attention, "):
        kernels.backends("scan")


def test_backends_answers_for_a_dtype_and_a_device() -> None:
    assert kernels.backends("selective_scan", torch.float32, "cpu")["cpu"] is None
    assert kernels.backends("selective_scan", torch.float64)["cpu"] is not None
    assert kernels.backends("selective_scan", device="cuda")["cpu"] is not None


def test_several_operations_and_backends_in_one_graph() -> None:
    def function(tensors: dict[str, Tensor]) -> Tensor:
        slow, fast = (scan(tensors, backend)[0] for backend in ("chunked", "auto"))
        return kernels.causal_conv1d(slow - fast, tensors["A"], activation="silu")

    tensors = as_float32(Case(9))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tensors), function(tensors))
    assert kernels.ran() == {"selective_scan": ["chunked", "cpu"], "causal_conv1d": ["cpu"]}


@pytest.mark.parametrize("op", kernels.operations())
def test_a_new_process_may_begin_in_float64(op: str) -> None:
    """Nothing has been imported then: float64 goes to the reference without asking any other backend."""
    code = f"import kernels, torch; from kernels import dispatch; dispatch._choose({op!r}, 'auto', torch.float64, "
    code += f"torch.device('cpu')); assert dispatch._functions[{op!r}]['reference']"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
def test_tensors_on_two_devices_are_refused(backend: str) -> None:
    """A kernel in C++ would follow an address that is none, and end the process."""
    x, weight = torch.ones(300, 64), torch.ones(256, 64, device="meta")
    with pytest.raises(ValueError, match="linear: expected tensors on one device, got cpu and meta: move them"):
        kernels.linear(x, weight, backend=backend)
