"""Softmax attention against a direct transcription of its equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.attention import cpu

BACKENDS = list(kernels.backends("attention"))
RESULTS = ("out", "dquery", "dkeys", "dvalues")


def draw(queries: int, keys: int, features: int, heads: int = 2, groups: int = 1, rows: int = 2) -> list[Tensor]:
    """query, keys, values, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, heads * groups, queries, features), *[(rows, heads, keys, features)] * 2]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def direct(query: Tensor, keys: Tensor, values: Tensor, causal: bool) -> Tensor:
    """Row by row and head by head."""
    groups = query.shape[1] // keys.shape[1]
    out = torch.empty_like(query)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            q, k, v = query[row, head], keys[row, head // groups], values[row, head // groups]
            for t in range(q.shape[0]):
                seen = t + 1 if causal else k.shape[0]
                out[row, head, t] = torch.softmax(q[t] @ k[:seen].T / q.shape[1] ** 0.5, 0) @ v[:seen]
    return out


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("causal", [False, True])
def test_the_equations(backend: str, causal: bool) -> None:
    tensors = [tensor.float() for tensor in draw(9, 9, 6, groups=3)]
    torch.testing.assert_close(kernels.attention(*tensors, causal, backend=backend), direct(*tensors, causal))


def results(function: Callable[..., Tensor], tensors: list[Tensor], causal: bool) -> list[Tensor]:
    """The result and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, causal)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


REFERENCE = partial(kernels.attention, backend="reference")
CPU = partial(kernels.attention, backend="cpu")
PLAIN = partial(kernels.attention, backend="sdpa")  # whose backward pass computes the weights again, as ours does


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (63, 63), (64, 64), (65, 65), (300, 300), (5, 600), (130, 31)])
@pytest.mark.parametrize(("features", "groups"), [(1, 1), (16, 2), (40, 1), (64, 3)])
def test_values_and_gradients(sizes: tuple[int, int], causal: bool, features: int, groups: int) -> None:
    if causal and sizes[0] != sizes[1]:
        sizes = sizes[0], sizes[0]
    tensors = draw(*sizes, features, groups=groups)
    floats = [tensor.float() for tensor in tensors]
    with nan_in_fresh_memory():
        actual = results(CPU, floats, causal)
    assert_all_as_good(RESULTS, actual, results(PLAIN, floats, causal), results(REFERENCE, tensors, causal))


def test_scores_far_apart() -> None:
    query, keys, values = (tensor.float() for tensor in draw(300, 300, 16))
    tensors = [30 * query, 30 * keys - 20, values]
    exact = results(REFERENCE, [tensor.double() for tensor in tensors], True)
    assert_all_as_good(RESULTS, results(CPU, tensors, True), results(PLAIN, tensors, True), exact)


def test_any_strides() -> None:
    tensors = [tensor.float() for tensor in draw(70, 70, 24, groups=2)]
    spread = [torch.stack([tensor, tensor + 1], -1)[..., 0] for tensor in tensors]
    spread[1] = tensors[1].permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    torch.testing.assert_close(results(CPU, spread, True), results(CPU, tensors, True), rtol=1e-5, atol=1e-6)


def test_the_same_bits_each_time() -> None:
    tensors = [tensor.float() for tensor in draw(200, 200, 16, groups=2, rows=3)]
    assert all(map(torch.equal, results(CPU, tensors, True), results(CPU, tensors, True)))


def test_nan_passes_through_and_does_not_spread_to_the_past() -> None:
    query, keys, values = (tensor.float() for tensor in draw(100, 100, 16))
    keys[0, 1, 70, 3] = torch.nan
    out = kernels.attention(query, keys, values, True, backend="cpu")
    assert out[0, 1, 70:].isnan().all()
    assert not out[0, 1, :70].isnan().any()
    assert not out[:, 0].isnan().any()


def test_operators() -> None:
    query, keys, values = (tensor.float().requires_grad_() for tensor in draw(5, 5, 8, groups=2))
    torch.library.opcheck(cpu.attend, (query, keys, values, True))
    compiled = torch.compile(lambda *tensors: CPU(*tensors, True).sum(), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(query, keys, values), CPU(query, keys, values, True).sum())


def test_second_derivatives_are_refused() -> None:
    tensors = [tensor.float().requires_grad_() for tensor in draw(3, 3, 4)]
    (gradient,) = torch.autograd.grad(CPU(*tensors, True).sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="attention: the backend 'cpu' has no second derivatives"):
        gradient.sum().backward()


def test_reference_is_differentiable_twice() -> None:
    tensors = [tensor.requires_grad_() for tensor in draw(3, 3, 2, heads=1, groups=2, rows=1)]
    function = partial(REFERENCE, causal=True)
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_bad_shapes_are_refused() -> None:
    query, keys, values = draw(3, 4, 2)
    with pytest.raises(ValueError, match="as many queries as keys where causal, got 3 and 4"):
        kernels.attention(query, keys, values, causal=True)
    with pytest.raises(ValueError, match=r"expected values of shape \(B, H, S, E\)"):
        kernels.attention(query, keys, values[:, :, :3])
    with pytest.raises(ValueError, match="Hq a multiple of H"):
        kernels.attention(query[:, :1], keys, values)
