"""The C++ backend of the selective scan as an operator: torch's own checks, threads, memory, other processors."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Iterator
from ctypes import CDLL, c_int64
from pathlib import Path

import pytest
import torch
from scans import NAMES, RESULTS, Case, as_float32, results, scan, truth
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import kernels
from experiments import measure
from kernels.selective_scan import cpu


@pytest.fixture(scope="module", autouse=True)
def library() -> CDLL:
    """The compiled backend, loaded: operators called by name need it."""
    library = cpu.library()
    assert isinstance(library, CDLL), library
    return library


def operands(case: Case) -> list[Tensor | None]:
    """The tensors in the order of the operator."""
    tensors = as_float32(case)
    return [tensors.get(name) for name in NAMES]


def test_opcheck() -> None:
    tensors = operands(Case(70))
    torch.library.opcheck(cpu.scan, (*tensors, True, True))
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


WIDE = Case(85, channels=40, states=16, groups_B=1, groups_C=1)
"""Blocks of channels that fill registers, the last but half of one, and steps that end within a register."""


@pytest.mark.parametrize("other", ["nothing", "u", "delta", "z", "u z"])
def test_what_lies_in_rows_and_what_lies_in_columns(other: str) -> None:
    tensors = as_float32(WIDE)
    tensors |= {name: tensors[name].mT.contiguous().mT for name in other.split() if name in tensors}
    assert_all_as_good(RESULTS, results(tensors, "cpu"), *truth(WIDE))


@pytest.mark.parametrize("short", ["z", "cotangent", "u delta z cotangent"])
@pytest.mark.parametrize("softplus", [True, False])
def test_the_gate_may_be_of_another_dtype_and_layout(short: str, softplus: bool) -> None:
    """In bfloat16, which float32 holds exactly, or with channels side by side: the same but for rounding at the end."""
    tensors = as_float32(WIDE) | {"cotangent": torch.randn(2, 40, 85, generator=torch.Generator().manual_seed(0))}
    tensors |= {name: tensors[name].bfloat16() for name in short.split()}
    if not softplus:
        del tensors["delta_bias"], tensors["delta"]
        tensors["delta"] = torch.rand(2, 40, 85).to(tensors["u"].dtype)
    floats = {name: tensor.float() for name, tensor in tensors.items()}
    tensors["cotangent"] = tensors["cotangent"].mT.contiguous().mT
    found = []
    for given in (tensors, floats):
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items() if name != "cotangent"}
        out, _ = scan(leaves, "cpu")
        found.append([out, *torch.autograd.grad(out, list(leaves.values()), given["cotangent"].to(out.dtype))])
    for of_short, of_float in zip(*found, strict=True):
        least = 1e-5 if of_short.dtype == torch.float32 else 2**-8
        torch.testing.assert_close(of_short, of_float.to(of_short.dtype), rtol=least, atol=least)


@pytest.mark.parametrize("length", [1040, 1039])
def test_a_large_result_is_the_same_as_its_parts(length: int) -> None:
    """Those too large for a cache are written past it where rows are whole lines of memory, as of 1040 floats."""
    tensors = as_float32(Case(length, channels=1024, states=2, groups_B=1, groups_C=1, rows=1))
    dims = {"u": 1, "delta": 1, "A": 0, "D": 0, "z": 1, "delta_bias": 0, "initial_state": 1}

    def of_channels(first: int, count: int) -> Tensor:
        return scan(tensors | {name: tensors[name].narrow(dim, first, count) for name, dim in dims.items()}, "cpu")[0]

    assert torch.equal(of_channels(0, 1024), torch.cat([of_channels(first, 256) for first in range(0, 1024, 256)], 1))


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


FEW = {
    "all options": Case(1000),
    "bare": Case(700, options=False, groups_B=1, groups_C=1),
    "constant B and C": Case(520, groups_B=0, groups_C=0),
    "constant C, channel-last": Case(513, channels=17, states=16, groups_B=1, groups_C=0, channel_last=True),
}


def with_a_long_memory(case: Case) -> dict[str, Tensor]:
    """The case's tensors, such that the last state still depends on the first."""
    tensors = as_float32(case)
    return tensors | {"A": tensors["A"] / 2000}


@pytest.fixture
def many_threads(library: CDLL) -> Iterator[None]:
    """So many that time is cut into segments."""
    work_per_thread = c_int64.in_dll(library, "work_per_thread")
    usual, threads = work_per_thread.value, torch.get_num_threads()
    work_per_thread.value = 1
    torch.set_num_threads(24)
    yield
    work_per_thread.value = usual
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("many_threads")
@pytest.mark.parametrize("length", [65, 66, 67, 3])
def test_a_nan_stays_in_its_row(length: int) -> None:
    """One thread takes the rows one after the other, in the same memory: what the first leaves there, none may read."""
    tensors = as_float32(Case(length, channels=4, rows=2, groups_B=1, groups_C=1))
    of_rows = ("u", "delta", "B", "C", "z", "initial_state")
    alone = {name: tensor[1:] if name in of_rows else tensor for name, tensor in tensors.items()}
    spoiled = tensors | {
        name: torch.cat([torch.full_like(tensors[name][:1], torch.nan), alone[name]]) for name in of_rows
    }

    def gradients(given: dict[str, Tensor]) -> list[Tensor]:
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in given.items()}
        wanted = [leaves[name] for name in of_rows]
        return [one[-1] for one in torch.autograd.grad(scan(leaves, "cpu")[0][-1].sum(), wanted)]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert all(map(torch.equal, gradients(spoiled), gradients(alone)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("few", FEW)
def test_few_channels_are_cut_in_time(few: str) -> None:
    tensors = with_a_long_memory(FEW[few])
    with nan_in_fresh_memory():
        actual = results(tensors, "cpu")
    plain = results(tensors, "reference")
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "reference")
    assert_all_as_good(RESULTS[: len(actual)], actual, plain, exact)
    assert all(map(torch.equal, actual, results(tensors, "cpu")))


@pytest.mark.usefixtures("many_threads")
def test_segments_are_in_use() -> None:
    tensors = with_a_long_memory(FEW["all options"])
    cut = results(tensors, "cpu")
    torch.set_num_threads(1)
    whole = results(tensors, "cpu")
    assert not any(torch.equal(cut[i], whole[i]) for i in (0, 1, RESULTS.index("gradient of initial_state")))


@pytest.mark.usefixtures("many_threads")
def test_extremes_in_segments() -> None:
    tensors = with_a_long_memory(FEW["all options"])
    tensors["delta"][..., 200:600] = -math.inf
    tensors["delta"][..., 650:700] = 9e4
    tensors["u"][0, 5, 10] = math.nan
    for fast, plain in zip(scan(tensors, "cpu"), scan(tensors, "reference"), strict=True):
        largest = float(plain.nan_to_num(0).abs().max())
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=2e-6 * largest, equal_nan=True)


@pytest.mark.usefixtures("many_threads")
def test_growth_without_bounds_leaves_zeros_alone() -> None:
    tensors = as_float32(FEW["bare"])
    tensors["A"].fill_(1.0)
    tensors["u"][0] = 0
    out, last = scan(tensors, "cpu")
    assert out[0].eq(0).all()
    assert last[0].eq(0).all()
    assert last[1].isfinite().logical_not().all()


def test_sums_over_long_times_stay_exact() -> None:
    case = Case(4000, channels=3, states=2, groups_B=1, groups_C=1, rows=1)
    tensors = as_float32(case)
    gradient = results(tensors, "cpu")[RESULTS.index("gradient of D")]
    silu = torch.nn.functional.silu(tensors["z"].double())
    cotangent = torch.randn(1, 3, 4000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    exact = (cotangent * silu * tensors["u"].double()).sum((0, 2))
    torch.testing.assert_close(gradient.double(), exact, rtol=0, atol=4e-7 * float(exact.abs().max()))


def test_memory_that_runs_out_is_an_error() -> None:
    one = torch.zeros(1, 1, 1)
    states = torch.zeros(1, 1).expand(1, 2**46)  # in memory of one, but the last state is beyond any machine
    with pytest.raises(MemoryError):
        kernels.selective_scan(one, one, states, states, states, backend="cpu")


SHORT = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("channel_last", [False, True])
def test_every_short_float_is_read_and_written_as_torch_does(dtype: torch.dtype, channel_last: bool) -> None:
    """With B = 0 what remains is D u."""
    u = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 64, 1024)
    u = torch.where(u.float().abs() < 2**-100, 0, u)  # the kernel flushes float32's denormals
    u = torch.where(u.isinf(), 1, u)  # infinity times 0 is not 0
    u = u.mT.contiguous().mT if channel_last else u
    zeros = torch.zeros(64, 1)
    for factor in (1.0, 1 + 2**-9, 1 - 2**-12, 3e-4, 4097.0):
        D = torch.full((64,), factor)
        out = kernels.selective_scan(u, u.nan_to_num(0).clamp(0, 1), zeros, zeros, zeros, D, backend="cpu")
        torch.testing.assert_close(out, (factor * u.float()).to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", SHORT, ids=str)
def test_gradients_of_short_floats_are_rounded_once(dtype: torch.dtype) -> None:
    """Sequences and inputs short, the rest float32, as a module under autocast has them."""
    tensors = as_float32(Case(70))
    short = tensors | {name: tensors[name].to(dtype) for name in ("u", "delta", "z", "B", "C")}
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(tensors["u"].shape, generator=generator).to(dtype)
    gradients = []
    for given in (short, {name: tensor.float() for name, tensor in short.items()}):
        leaves = {name: tensor.requires_grad_() for name, tensor in given.items()}
        out, _ = scan(leaves, "cpu")
        gradients.append(torch.autograd.grad(out, list(leaves.values()), cotangent.to(out.dtype)))
    for name, of_short, of_float in zip(short, *gradients, strict=True):
        assert torch.equal(of_short, of_float.to(of_short.dtype)), name


def test_torchs_default_dtype_plays_no_part() -> None:
    tensors = as_float32(Case(9))
    expected = results(tensors, "cpu")
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        found = results(tensors, "cpu")
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))


def test_arguments_of_other_dtypes_are_converted() -> None:
    tensors = as_float32(Case(9))
    whole = tensors | {"D": torch.arange(20), "A": -torch.arange(100).view(20, 5)}
    expected = scan({name: tensor.float() for name, tensor in whole.items()}, "cpu")
    assert all(map(torch.equal, scan(whole, "cpu"), expected))


@pytest.mark.parametrize("dtype", [torch.float32, *SHORT], ids=str)
def test_forward_needs_no_memory_but_its_results(dtype: torch.dtype) -> None:
    u, delta, z = torch.rand(3, 1, 256, 2**15, dtype=dtype).unbind()
    B, C = torch.rand(2, 1, 16, 2**15, dtype=dtype).unbind()
    A, D = -torch.rand(256, 16), torch.ones(256)
    cpu = torch.device("cpu")
    before = measure.allocated(cpu)
    kernels.selective_scan(u, delta, A, B, C, D, z, D, True, backend="cpu")
    peak = measure.most_allocated(cpu)
    if before is None or peak is None:
        pytest.skip("this system does not tell")
    given = sum(tensor.nbytes for tensor in (u, delta, z, B, C))
    assert peak - before - u.nbytes < 0.05 * (given + u.nbytes)


NARROWER = """
import sys
sys.path.insert(0, sys.argv[2])
from kernels import build
build._FLAGS = ("-O1", f"-march={sys.argv[1]}", *(f for f in build._FLAGS if not f.startswith(("-O", "-march"))))
from scans import RESULTS, Case, as_float32, results, truth
from tolerance import assert_all_as_good
for case in (Case(65), Case(20, channels=40, states=16, groups_B=1, groups_C=1, channel_last=True)):
    assert_all_as_good(RESULTS, results(as_float32(case), "cpu"), *truth(case))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86-64 levels")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_narrower_processors(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subprocess.run([sys.executable, "-c", NARROWER, level, str(Path(__file__).parent)], check=True)


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
