"""The selective scan on a real GPU: right in value and in every gradient, repeatable, capturable in a graph.

Under the memory checker, on small sizes:
    compute-sanitizer python -m pytest tests/kernels/test_selective_scan_gpu.py -k small
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scans import RESULTS, Case, as_float32, results, scan
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

SMALL = Case(65, channels=40, states=16, groups_B=1, groups_C=1)
LARGE = Case(2048, channels=1536, states=16, groups_B=1, groups_C=1, rows=1)


@pytest.fixture(params=["cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    reason = kernels.backends("selective_scan", torch.float32, "cuda")[request.param]
    if reason is not None:
        pytest.skip(reason)
    return str(request.param)


def on_gpu(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    weights = ("A", "D", "delta_bias", "initial_state")
    return {name: (t if name in weights else t.to(dtype)).cuda() for name, t in as_float32(case).items()}


def assert_right(tensors: dict[str, Tensor], backend: str) -> None:
    with nan_in_fresh_memory():
        actual = results(tensors, backend)
    plain = results(tensors, "chunked")
    exact = results({name: tensor.double() for name, tensor in tensors.items()}, "chunked")
    assert_all_as_good(RESULTS[: len(actual)], actual, plain, exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 65, 1000])
def test_small(length: int, dtype: torch.dtype, backend: str) -> None:
    assert_right(on_gpu(replace(SMALL, length=length), dtype), backend)


@pytest.mark.parametrize(
    "case",
    [
        Case(97, channels=40, states=16, groups_B=1, groups_C=1, channel_last=True),
        Case(70, options=False),
        Case(70, groups_B=4, groups_C=10),
        Case(33, groups_B=0, groups_C=2),
        Case(40, channels=3, states=40, groups_B=1, groups_C=0),
        Case(40, channels=2, states=200, groups_B=1, groups_C=1, rows=1),
    ],
    ids=lambda case: f"{case.channels}-{case.states}-{case.groups_B}-{case.groups_C}",
)
def test_small_shapes(case: Case, backend: str) -> None:
    assert_right(on_gpu(case), backend)


@pytest.mark.parametrize("rows", [1, 32])
def test_as_large_as_a_model(rows: int, backend: str) -> None:
    assert_right(on_gpu(replace(LARGE, length=2048 if rows == 1 else 200, rows=rows), torch.bfloat16), backend)


def test_ten_runs_with_equal_bits(backend: str) -> None:
    tensors = on_gpu(replace(LARGE, length=777), torch.bfloat16)
    expected = results(tensors, backend)
    for _ in range(9):
        assert all(map(torch.equal, results(tensors, backend), expected))


def test_auto_takes_cuda() -> None:
    reason = kernels.backends("selective_scan", torch.float32, "cuda")["cuda"]
    assert reason is None, reason
    kernels.forget()
    scan(on_gpu(SMALL), "auto")
    assert kernels.ran() == {"selective_scan": ["cuda"]}


def test_captured_in_a_graph(backend: str) -> None:
    tensors = on_gpu(SMALL)
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    def step() -> list[Tensor]:
        out, last = scan(leaves, backend)
        return [out, last, *torch.autograd.grad([out.sum(), last.sum()], list(leaves.values()))]

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):  # compiles, and warms up the allocator
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        tensors["u"].mul_(2)
    graph.replay()
    torch.cuda.synchronize()
    assert all(map(torch.equal, captured, step()))


def test_waits_for_nothing(backend: str) -> None:
    tensors = on_gpu(SMALL)
    results(tensors, backend)
    torch.cuda.set_sync_debug_mode("error")
    try:
        leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
        out, last = scan(leaves, backend)
        torch.autograd.grad([out.sum(), last.sum()], list(leaves.values()))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_more_than_2_to_the_31_elements(backend: str) -> None:
    channels, length = 2048, 2**20 + 64
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of GPU memory")
    generator = torch.Generator("cuda").manual_seed(0)
    u = torch.randn(1, channels, length, device="cuda", dtype=torch.bfloat16, generator=generator)
    A = -torch.rand(channels, 16, device="cuda", generator=generator)
    B, C = (torch.randn(1, 16, length, device="cuda", dtype=torch.bfloat16, generator=generator) for _ in range(2))
    out = kernels.selective_scan(u, u, A, B, C, delta_softplus=True, backend=backend)
    few = slice(channels - 4, channels)
    expected = kernels.selective_scan(
        u[:, few], u[:, few], A[few], B, C, delta_softplus=True, backend="chunked"
    )  # the last channels lie behind 2^31
    torch.testing.assert_close(out[:, few], expected, rtol=0.05, atol=0.05)
