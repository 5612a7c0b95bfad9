"""Rotary positions against multiplication by complex numbers."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.rotary import cpu

CPU, REFERENCE = (partial(kernels.rotary, backend=backend) for backend in ("cpu", "reference"))


def draw(heads: int, length: int, features: int, per_row: bool = False) -> list[Tensor]:
    """x, cos and sin of two rows, float64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, length, heads, features, generator=generator, dtype=torch.float64).transpose(1, 2)
    angles = torch.randn(1 + per_row, 1, length, features // 2, generator=generator, dtype=torch.float64)
    return [x, angles.cos(), angles.sin()]


def results(function: partial, x: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
    """The result and the gradient of x."""
    leaf = x.detach().requires_grad_()
    out = function(leaf, cos, sin)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaf, cotangent.to(out.dtype))]


def test_the_equations() -> None:
    x, cos, sin = draw(3, 5, 8)
    turned = torch.complex(*x.chunk(2, -1)) * torch.complex(cos, sin)
    torch.testing.assert_close(REFERENCE(x, cos, sin), torch.cat([turned.real, turned.imag], -1))


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize(("heads", "length", "features"), [(1, 1, 2), (3, 2, 30), (2, 65, 32), (4, 300, 64)])
def test_values_and_gradients(heads: int, length: int, features: int, per_row: bool) -> None:
    tensors = draw(heads, length, features, per_row)
    floats = [tensor.float() for tensor in tensors]
    with nan_in_fresh_memory():
        actual = results(CPU, *floats)
    assert_all_as_good(("out", "dx"), actual, results(REFERENCE, *floats), results(REFERENCE, *tensors))


def test_any_strides_and_short_floats() -> None:
    x, cos, sin = (tensor.float() for tensor in draw(3, 70, 32))
    expected = results(CPU, x, cos, sin)
    torch.testing.assert_close(results(CPU, torch.stack([x, x], -1)[..., 0], cos, sin), expected)
    torch.testing.assert_close(CPU(x.bfloat16(), cos, sin), REFERENCE(x.bfloat16(), cos, sin))


def test_operators_and_second_derivatives() -> None:
    x, cos, sin = (tensor.float() for tensor in draw(2, 5, 8))
    x = x.detach().requires_grad_()
    torch.library.opcheck(cpu.turn, (x.detach(), cos, sin, False))
    (gradient,) = torch.autograd.grad(CPU(x, cos, sin).square().sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, 2 * x)  # a rotation keeps lengths
    torch.testing.assert_close(torch.autograd.grad(gradient.sum(), x)[0], torch.full_like(x, 2.0))


def test_bad_shapes_are_refused() -> None:
    x, cos, sin = draw(2, 3, 4)
    with pytest.raises(ValueError, match="with E even"):
        kernels.rotary(x[..., :3], cos, sin)
    with pytest.raises(ValueError, match="expected sin of shape"):
        kernels.rotary(x, cos, sin[:, :, :2])
