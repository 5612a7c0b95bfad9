"""Triton's backends beside the scan's on a real GPU: right, repeatable, in place, capturable in a graph.

Under the memory checker:
    compute-sanitizer python -m pytest tests/kernels/test_triton_gpu.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
Function = Callable[..., tuple[Tensor, ...]]


def normal(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to("cuda", dtype) for shape in shapes]


def convolve(x: Tensor, weight: Tensor, bias: Tensor, initial: Tensor, *, backend: str) -> tuple[Tensor, ...]:
    return kernels.causal_conv1d(x, weight, bias, initial, return_final_states=True, activation="silu", backend=backend)


def attend(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, *, backend: str) -> tuple[Tensor, ...]:
    mask = torch.arange(keys.shape[1], device="cuda").remainder(3).ne(1).expand(len(keys), -1)
    return (kernels.additive_attention(query, keys, values, v, mask, backend=backend),)


def update(
    state: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, z: Tensor, *, backend: str
) -> tuple[Tensor, ...]:
    return kernels.selective_state_update(state, x, dt, -A.exp(), B, B, None, z, None, True, backend=backend)


def cases() -> Iterator[tuple[str, Function, list[tuple[int, ...]]]]:
    for length in (1, 3, 65, 1000):
        yield f"convolution-{length}", convolve, [(2, 40, length), (40, 4), (40,), (2, 40, 3)]
    for queries, keys, hidden, width in ((1, 7, 5, 4), (20, 65, 40, 17), (64, 1000, 128, 256), (3, 50, 512, 1024)):
        shapes = [(2, queries, hidden), (2, keys, hidden), (2, keys, width), (hidden,)]
        yield f"attention-{queries}-{hidden}", attend, shapes
    for channels, states in ((40, 16), (300, 3)):
        shapes = [(3, channels, states), (3, channels), (3, channels), (channels, states), (3, 2, states)]
        yield f"update-{channels}", update, [*shapes, (3, channels)]


CASES = {name: (function, shapes) for name, function, shapes in cases()}


def results(function: Function, tensors: list[Tensor], backend: str) -> list[Tensor]:
    """Values and the gradient of every tensor."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    values = function(*leaves, backend=backend)
    cotangents = [torch.linspace(-1, 1, value.numel(), device="cuda").view(value.shape).to(value) for value in values]
    return [*(value.detach() for value in values), *torch.autograd.grad(values, leaves, cotangents)]


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, dtype: torch.dtype) -> None:
    function, shapes = CASES[name]
    tensors = normal(*shapes, dtype=dtype)
    with nan_in_fresh_memory():
        actual = results(function, tensors, "triton")
    plain = results(function, tensors, "reference")
    exact = results(function, [tensor.double() for tensor in tensors], "reference")
    assert_all_as_good(map(str, range(len(exact))), actual, plain, exact)


@pytest.mark.parametrize("name", CASES)
def test_ten_runs_with_equal_bits(name: str) -> None:
    function, shapes = CASES[name]
    tensors = normal(*shapes, dtype=torch.bfloat16)
    expected = results(function, tensors, "triton")
    for _ in range(9):
        assert all(map(torch.equal, results(function, tensors, "triton"), expected))


def test_channels_last_gives_the_same() -> None:
    tensors = normal((2, 40, 300), (40, 4), (40,), (2, 40, 3))
    last = [tensors[0].mT.contiguous().mT, *tensors[1:]]
    torch.testing.assert_close(*(results(convolve, given, "triton") for given in (tensors, last)))


def test_auto_takes_triton() -> None:
    kernels.forget()
    for function, shapes in CASES.values():
        function(*normal(*shapes), backend="auto")
    assert set(map(tuple, kernels.ran().values())) == {("triton",)}


def decode(state: Tensor, columns: Tensor, x: Tensor, A: Tensor, B: Tensor, weight: Tensor) -> Tensor:
    """A step of a layer, its states written in place."""
    seen = kernels.causal_conv1d_update_(x, columns, weight, None, "silu", backend="triton")
    return kernels.selective_state_update_(state, seen, x, A, B, B, dt_softplus=True, backend="triton")


@DTYPES
def test_a_step_in_place_takes_no_memory_waits_for_nothing_and_is_captured(dtype: torch.dtype) -> None:
    x, A_log, B, weight = normal((4, 256), (256, 16), (4, 16), (256, 4))
    A = -A_log.exp()
    states = normal((4, 256, 16), (4, 256, 3), dtype=dtype)
    kept = [state.clone() for state in states]
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.inference_mode():
        with torch.cuda.stream(side):  # compiles
            decode(*(state.clone() for state in states), x, A, B, weight)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        torch.cuda.set_sync_debug_mode("error")
        try:
            expected = decode(*kept, x, A, B, weight)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.max_memory_allocated() - before < 4 * x.nbytes
        with torch.cuda.graph(graph):
            out = decode(*states, x, A, B, weight)
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(out, expected)
    assert all(map(torch.equal, states, kept))
