"""The norm and the gate of gqa's blocks against their equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.rms_norm import cpu as rms_norm_cpu
from kernels.swiglu import cpu as swiglu_cpu

EPS = 1e-5
Operation = Callable[..., Tensor]


def rms_norm(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return kernels.rms_norm(x, weight, EPS, backend=backend)


def swiglu(x: Tensor, backend: str) -> Tensor:
    return kernels.swiglu(x, backend=backend)


def draw(operation: Operation, rows: int, features: int) -> list[Tensor]:
    """The operation's arguments, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, 2 * features)] if operation is swiglu else [(rows, features), (features,)]
    return [3 * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def results(function: Operation, tensors: list[Tensor]) -> list[Tensor]:
    """The result and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


def test_the_equations() -> None:
    x, weight = draw(rms_norm, 3, 7)
    expected = x / (x.square().mean(-1, keepdim=True) + EPS).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, "reference"), expected)
    gate, up = x[:, :3], x[:, 3:6]
    torch.testing.assert_close(swiglu(x[:, :6], "reference"), gate / (1 + torch.exp(-gate)) * up)


@pytest.mark.parametrize("operation", [rms_norm, swiglu])
@pytest.mark.parametrize(("rows", "features"), [(1, 1), (2, 15), (64, 16), (65, 17), (300, 344)])
def test_values_and_gradients(operation: Operation, rows: int, features: int) -> None:
    tensors = draw(operation, rows, features)
    floats = [tensor.float() for tensor in tensors]
    fast, plain = partial(operation, backend="cpu"), partial(operation, backend="reference")
    with nan_in_fresh_memory():
        actual = results(fast, floats)
    names = ("out", "dx", "dweight")[: len(actual)]
    assert_all_as_good(names, actual, results(plain, floats), results(plain, tensors))


@pytest.mark.parametrize("operation", [rms_norm, swiglu])
def test_strides_extremes_and_short_floats(operation: Operation) -> None:
    x, *weight = (tensor.float() for tensor in draw(operation, 6, 20))
    x[0, 0], x[1, 1], x[2, 2] = 1e4, -1e4, torch.nan
    expected = operation(x, *weight, "reference")
    torch.testing.assert_close(operation(x.T.contiguous().T, *weight, "cpu"), expected, equal_nan=True)
    short = [tensor.bfloat16() for tensor in (x, *weight)]
    torch.testing.assert_close(operation(*short, "cpu"), operation(*short, "reference"), equal_nan=True)


@pytest.mark.parametrize("operation", [rms_norm, swiglu])
def test_no_rows(operation: Operation) -> None:
    assert operation(*(tensor.float() for tensor in draw(operation, 0, 20)), "cpu").shape == (0, 20)


@pytest.mark.parametrize("operation", [rms_norm, swiglu])
def test_operators(operation: Operation) -> None:
    tensors = [tensor.float() for tensor in draw(operation, 5, 8)]
    out = operation(*tensors, "cpu")
    if operation is rms_norm:
        torch.library.opcheck(rms_norm_cpu.normalize, (*tensors, EPS))
        torch.library.opcheck(rms_norm_cpu.normalize_backward, (out, *tensors, EPS))
    else:
        torch.library.opcheck(swiglu_cpu.gate, tensors)
        torch.library.opcheck(swiglu_cpu.gate_backward, (out, *tensors))
    out = operation(*(tensor.requires_grad_() for tensor in tensors), "cpu")
    (gradient,) = torch.autograd.grad(out.sum(), tensors[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        gradient.sum().backward()


@pytest.mark.parametrize("operation", [rms_norm, swiglu])
def test_reference_is_differentiable_twice(operation: Operation) -> None:
    tensors = [tensor.requires_grad_() for tensor in draw(operation, 2, 3)]
    function = partial(operation, backend="reference")
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


def test_bad_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"swiglu: expected x of shape \(..., 2 E\), got \(2, 3\)"):
        kernels.swiglu(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"rms_norm: expected weight of shape \(D\) = \(3,\), got \(2,\)"):
        kernels.rms_norm(torch.ones(2, 3), torch.ones(2), EPS)
