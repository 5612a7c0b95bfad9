"""The CUDA kernels of the selective scan without a GPU: the same text compiled by g++, against float64."""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuda_emulation import Emulation
from scans import NAMES, RESULTS, Case, as_float32, results, scan, truth
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import archs
import kernels
from kernels.selective_scan import _cuda_problem, cuda

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulation is compiled by g++")

MAMBA = Case(0, channels=40, states=16, groups_B=1, groups_C=1)


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulation]:
    """One processor: time is not cut into segments."""
    emulation = Emulation()
    monkeypatch.setattr(cuda, "machine", emulation)
    monkeypatch.setattr(cuda, "why_not", lambda dtype, device: None)
    kernels.forget()
    yield emulation
    kernels.forget()


def at_length(case: Case, length: int) -> Case:
    return Case(**{**vars(case), "length": length})


def assert_right(case: Case) -> None:
    with nan_in_fresh_memory():
        actual = results(as_float32(case), "cuda")
    assert_all_as_good(RESULTS[: len(actual)], actual, *truth(case))


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 64, 65, 1000])
def test_values_and_gradients(length: int) -> None:
    assert_right(Case(length))


@pytest.mark.parametrize(
    "case",
    [
        at_length(MAMBA, 64),
        Case(97, channels=40, states=16, groups_B=1, groups_C=1, channel_last=True),
        Case(40, options=False),
        Case(70, groups_B=4, groups_C=10),
        Case(33, groups_B=0, groups_C=0),
        Case(50, groups_B=0, groups_C=2, options=False),
        Case(40, channels=3, states=40, groups_B=1, groups_C=0),
        Case(3, channels=1, states=1, groups_B=1, groups_C=1, rows=1),
        Case(40, channels=2, states=129, groups_B=1, groups_C=1, rows=1),
    ],
    ids=lambda case: f"{case.length}-{case.channels}-{case.states}-{case.groups_B}-{case.groups_C}",
)
def test_shapes(case: Case) -> None:
    assert_right(case)


@pytest.mark.parametrize("last", [False, True], ids=["steps", "channels"])
@pytest.mark.parametrize("sharing", [(8, 2), (8, 1), (16, 2), (16, 1), (32, 2), (32, 1)], ids=str)
def test_every_way_to_share_out_time(
    sharing: tuple[int, int], last: bool, machine: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads of a channel, and channels of a thread; of an odd number of states too."""
    monkeypatch.setattr(_cuda_problem, "_forward_lanes", lambda *given: sharing)
    for length, states in ((290, 16), (64, 5)):
        _cuda_problem._specialise.cache_clear()
        assert_right(Case(length, channels=24, states=states, groups_B=1, groups_C=1, rows=1, channel_last=last))
    _cuda_problem._specialise.cache_clear()
    forwards = {(one.lanes, one.twins) for kernel, one, _ in machine.launched if kernel == "scan_forward"}
    assert forwards == {sharing}


@pytest.mark.parametrize(
    ("rows", "channels", "expected"),
    [(1, 1536, (32, 1, 12)), (8, 1536, (8, 2, 16)), (2, 1536, (16, 1, 12)), (1, 100, (32, 1, 1))],
    ids=str,
)
def test_a_gpu_is_filled_evenly(rows: int, channels: int, expected: tuple[int, int, int]) -> None:
    """Lanes, twins and channels of a block on 132 multiprocessors."""
    u = torch.empty(rows, channels, 2048, device="meta", dtype=torch.bfloat16)
    A, B = torch.empty(channels, 16), torch.empty(rows, 1, 16, 2048, device="meta")
    one = _cuda_problem.specialise(u, A, B, B, False, 132)
    assert (one.lanes, one.twins, one.channels) == expected
    last = _cuda_problem.specialise(torch.empty(rows, 2048, channels, device="meta").mT, A, B, B, False, 132)
    assert last.across
    assert last.channels % 4 == 0


def test_groups_whose_first_channel_is_not_aligned(machine: Emulation) -> None:
    """Of 65 channels that lie together: four at once may only be moved in the first."""
    assert_right(Case(40, channels=260, states=16, groups_B=4, groups_C=4, rows=1, channel_last=True))
    assert {one.channels for kernel, one, _ in machine.launched if kernel == "scan_backward"} == {64}


@pytest.mark.parametrize("channels", [2, 10, 24])
def test_few_channels_that_lie_together(channels: int, machine: Emulation) -> None:
    """Fewer in a block than are moved at once, or more."""
    machine.count = 132
    assert_right(Case(70, channels=channels, states=16, groups_B=1, groups_C=1, channel_last=True))
    assert_right(Case(70, channels=channels, states=16, groups_B=2, groups_C=2, rows=1, channel_last=True))


@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
@pytest.mark.parametrize("case", [Case(1000), at_length(MAMBA, 609)], ids=["odd", "mamba"])
def test_segments(case: Case, backwards: bool, machine: Emulation) -> None:
    """In whatever order they run."""
    machine.count, machine.backwards = 60, backwards
    assert_right(case)
    assert {"scan_ends", "scan_join", "scan_ends_reverse"} <= {kernel for kernel, *_ in machine.launched}


def test_workspace_is_bounded(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "WORKSPACE", 2**16)
    machine.count = 5
    assert_right(Case(1000))
    assert sum(kernel == "scan_backward" for kernel, *_ in machine.launched) > 2


@pytest.mark.parametrize("case", [Case(65), at_length(MAMBA, 300)], ids=["odd", "mamba"])
def test_the_order_of_threads_changes_no_bit(case: Case, machine: Emulation) -> None:
    machine.count = 4
    forwards = results(as_float32(case), "cuda")
    machine.backwards = True
    assert all(map(torch.equal, results(as_float32(case), "cuda"), forwards))


def test_missing_barriers_show(machine: Emulation) -> None:
    """The check of the check: without barriers, the order of threads matters, or shared memory is read as NaN."""
    machine.without = "__syncthreads()"
    case = at_length(MAMBA, 65)
    forwards = results(as_float32(case), "cuda")
    machine.backwards = True
    assert not all(map(torch.equal, results(as_float32(case), "cuda"), forwards))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_dtypes(dtype: torch.dtype) -> None:
    case = at_length(MAMBA, 70)
    weights = ("A", "D", "delta_bias", "initial_state")
    tensors = {name: t if name in weights else t.to(dtype) for name, t in as_float32(case).items()}
    plain = results(tensors, "reference")
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "reference")
    actual = results(tensors, "cuda")
    assert [tensor.dtype for tensor in actual] == [tensor.dtype for tensor in plain]
    assert_all_as_good(RESULTS, actual, plain, exact)


def test_mixed_dtypes_are_computed_in_float32() -> None:
    tensors = as_float32(at_length(MAMBA, 20))
    tensors["u"] = tensors["u"].bfloat16()
    out, last = scan(tensors, "cuda")
    expected, expected_last = scan(tensors | {"u": tensors["u"].float()}, "cuda")
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, expected.bfloat16())
    assert torch.equal(last, expected_last)


@pytest.mark.parametrize("processors", [1, 20])
def test_minus_infinity_leaves_the_state_exactly(processors: int, machine: Emulation) -> None:
    machine.count = processors
    tensors = as_float32(Case(300))
    tensors["delta"].fill_(-math.inf)
    _, last, *gradients = results(tensors, "cuda")
    assert torch.equal(last, tensors["initial_state"])
    assert gradients[NAMES.index("delta")].eq(0).all()


def test_extreme_step_sizes() -> None:
    tensors = as_float32(Case(65))
    extremes = torch.tensor([-math.inf, -1e4, -104.0, -87.5, -30.0, -1e-4, 0.0, 1e-6, 19.99, 20.01, 90.0, 1e4])
    tensors["delta"] = extremes[torch.arange(tensors["delta"].numel()) % len(extremes)].view_as(tensors["delta"])
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "reference")
    assert_all_as_good(RESULTS, results(tensors, "cuda"), results(tensors, "reference"), exact)


@pytest.mark.parametrize("name", NAMES)
def test_nan_passes_through(name: str) -> None:
    tensors = as_float32(Case(65))
    tensors[name].view(-1)[-7] = math.nan
    expected = scan(tensors, "reference")
    assert all(torch.equal(a.isnan(), e.isnan()) for a, e in zip(scan(tensors, "cuda"), expected, strict=True))


def test_strided_and_expanded_arguments() -> None:
    tensors = as_float32(Case(65))
    spread = {name: torch.stack([tensor, tensor + 1], -1)[..., 0] for name, tensor in tensors.items()}
    spread["z"] = tensors["z"][:, :, :1].expand(-1, -1, 65)
    copied = {name: tensor.contiguous() for name, tensor in spread.items()}
    for left, right in zip(results(spread, "cuda"), results(copied, "cuda"), strict=True):
        torch.testing.assert_close(left, right)


def test_offsets_beyond_31_bits(tmp_path: Path) -> None:
    """Channels that lie 2^31 elements apart, in files that are all holes but for them."""
    tensors = {name: tensor.bfloat16() for name, tensor in as_float32(Case(70, channels=2, rows=1, groups_B=1)).items()}
    far = dict(tensors)
    for name in ("u", "delta", "z"):
        room = torch.from_file(str(tmp_path / name), True, 2**31 + 70, dtype=torch.bfloat16)
        far[name] = room.as_strided((1, 2, 70), (2**32, 2**31, 1)).copy_(tensors[name])
    assert all(map(torch.equal, results(far, "cuda"), results(tensors, "cuda")))


def test_scan_in_two_pieces_is_the_scan() -> None:
    case = Case(130)
    tensors = as_float32(case)
    timed = ("u", "delta", "z", "B", "C")
    head = {name: t[..., :70] if name in timed else t for name, t in tensors.items()}
    tail = {name: t[..., 70:] if name in timed else t for name, t in tensors.items()}
    first, state = scan(head, "cuda")
    second, last = scan(tail | {"initial_state": state}, "cuda")
    values = [torch.cat([first, second], -1), last]
    assert_all_as_good(RESULTS[:2], values, *(part[:2] for part in truth(case)))


def test_opcheck() -> None:
    tensors = [as_float32(Case(40)).get(name) for name in NAMES]
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    torch.library.opcheck(cuda.scan, (*leaves, True, True))
    out, last, kept = cuda.scan(*tensors, True, True)
    torch.library.opcheck(cuda.scan_backward, (out, last, kept, *tensors, True))


def test_compiles_as_one_graph() -> None:
    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(40)).items()}
    values = compiled(leaves, "cuda")
    assert all(map(torch.equal, values, scan(leaves, "cuda")))
    assert kernels.ran() == {"selective_scan": ["cuda"]}


def test_fake_tensors_on_a_gpu_that_is_not_there() -> None:
    """Without autograd, whose fake CUDA tensors make a torch without CUDA abort."""
    with FakeTensorMode(), torch.device("cuda"):
        tensors = {name: torch.empty(t.shape, dtype=torch.float32) for name, t in as_float32(Case(70)).items()}
        arguments = [tensors[name] for name in NAMES]
        out, last, kept = cuda.scan(*arguments, True, True)
        gradients = cuda.scan_backward(out, last, kept, *arguments, True)
    assert (out.device.type, out.shape, last.shape) == ("cuda", (2, 20, 70), (2, 20, 5))
    assert [gradient.shape for gradient in gradients] == [argument.shape for argument in arguments]


def test_second_derivatives_name_the_reference() -> None:
    leaves = {name: tensor.requires_grad_() for name, tensor in as_float32(Case(4)).items()}
    (gradient,) = torch.autograd.grad(scan(leaves, "cuda")[0].sum(), leaves["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


def test_tensors_on_two_devices_are_refused() -> None:
    tensors = as_float32(Case(4))
    with pytest.raises(ValueError, match="expected tensors on one device, got cpu and meta"):
        scan(tensors | {"A": tensors["A"].to("meta")}, "cuda")


class Zeros(TorchDispatchMode):
    """Notes how many numbers each tensor of zeros has."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if "zeros" in str(function):
            self.made.append(result.numel())
        return result


@pytest.mark.parametrize("used", [0, 1])
def test_nothing_is_made_for_the_gradient_of_kept_states(used: int) -> None:
    """Of which there are many; and what of the results is not used has the gradient zero."""
    tensors = as_float32(Case(400))
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    value = scan(leaves, "cuda")[used].sum()
    with Zeros() as zeros:
        actual = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    assert max(zeros.made) == tensors["u" if used else "initial_state"].numel()
    plain = torch.autograd.grad(scan(leaves, "reference")[used].sum(), list(leaves.values()), allow_unused=True)
    for left, right in zip(actual, plain, strict=True):
        torch.testing.assert_close(left, torch.zeros_like(left) if right is None else right, rtol=1e-4, atol=1e-4)


def test_too_many_states_are_refused() -> None:
    with pytest.raises(ValueError, match="serves 1 to 256 states, not 300: take backend='chunked'"):
        scan(as_float32(Case(2, channels=1, states=300, groups_B=1, groups_C=1)), "cuda")


def test_empty_batches() -> None:
    tensors = as_float32(Case(5))
    rows = ("u", "delta", "B", "C", "z", "initial_state")
    empty = {name: tensor[:0] if name in rows else tensor for name, tensor in tensors.items()}
    out, last, *gradients = results(empty, "cuda")
    assert (out.shape, last.shape) == ((0, 20, 5), (0, 20, 5))
    assert all(gradient.eq(0).all() for gradient in gradients)


def test_a_layer_of_mamba(machine: Emulation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its tensors are parts of others, channels side by side: no thread moves what is not aligned."""
    machine.count = 132
    mixer = archs.build("mamba", 16, d_model=32, n_layers=1).blocks[0].mixer
    x = torch.randn(2, 70, 32, generator=torch.Generator().manual_seed(0))

    def outputs(backend: str) -> list[torch.Tensor]:
        monkeypatch.setattr(kernels, "selective_scan", functools.partial(selective_scan, backend=backend))
        out, state = mixer(x, mixer.initial_state(2, x), None)
        return [out, *torch.autograd.grad(out.square().sum() + state.hidden.sum(), list(mixer.parameters()))]

    selective_scan = kernels.selective_scan
    for actual, expected in zip(outputs("cuda"), outputs("reference"), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert {one.across for kernel, one, _ in machine.launched} == {True}
