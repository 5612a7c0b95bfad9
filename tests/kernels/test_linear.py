"""The product with a matrix of weights against float64."""

from __future__ import annotations

import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.linear import cpu

CPU, REFERENCE = (partial(kernels.linear, backend=backend) for backend in ("cpu", "reference"))
RESULTS = ("out", "dx", "dweight", "dbias")
# (R, K, N): one number; less than a tile; tiles with and without remainders; more terms than are added up at a time, in
# the product and in the gradient of the weights, whose pieces and segments are several.
SHAPES = [(1, 1, 1), (5, 3, 2), (28, 16, 32), (113, 300, 33), (300, 7, 130), (2100, 40, 470), (40, 600, 260)]
SHAPES += [(60, 129, 113), (60, 100, 113)]  # few terms: the last piece, of columns or of rows, is empty


def draw(rows: int, terms: int, columns: int) -> list[Tensor]:
    """x, weight and bias, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, terms), (columns, terms), (columns,)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def results(function: partial, tensors: list[Tensor], relu: bool = False) -> list[Tensor]:
    """The result and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    out = function(*leaves, activation="relu" if relu else None)
    cotangent = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [out.detach(), *torch.autograd.grad(out, leaves, cotangent.to(out.dtype))]


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_gradients(shape: tuple[int, int, int], bias: bool, relu: bool) -> None:
    tensors = draw(*shape)[: 2 + bias]
    floats = [tensor.float() for tensor in tensors]
    with nan_in_fresh_memory():
        actual = results(CPU, floats, relu)
    others = results(REFERENCE, floats, relu), results(REFERENCE, tensors, relu)
    assert_all_as_good(RESULTS[: 3 + bias], actual, *others)


def test_a_part_of_a_matrix_and_matrices_that_lie_the_other_way() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(70, 24, 40))
    expected = results(CPU, [x, weight, bias])
    wider, taller = F.pad(x, (3, 5), value=torch.nan), F.pad(weight, (2, 1), value=torch.nan)
    torch.testing.assert_close(results(CPU, [wider[:, 3:-5], taller[:, 2:-1], bias]), expected)
    torch.testing.assert_close(results(CPU, [x.T.contiguous().T, weight.T.contiguous().T, bias]), expected)
    apart = torch.stack([bias, bias], 1)[:, 0]
    torch.testing.assert_close(results(CPU, [x, weight, apart]), expected)


def test_axes_before_the_last_are_rows() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(60, 24, 40))
    expected = CPU(x, weight, bias)
    assert torch.equal(CPU(x.view(3, 4, 5, 24), weight, bias), expected.view(3, 4, 5, 40))
    assert torch.equal(CPU(x.view(5, 12, 24).transpose(0, 1), weight), CPU(x, weight).view(5, 12, 40).transpose(0, 1))
    torch.testing.assert_close(CPU(x[0], weight, bias), expected[0])


@pytest.mark.parametrize(("rows", "terms", "columns"), [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_what_is_empty(rows: int, terms: int, columns: int) -> None:
    floats = [tensor.float() for tensor in draw(rows, terms, columns)]
    torch.testing.assert_close(results(CPU, floats), results(REFERENCE, floats))


@pytest.mark.parametrize("relu", [True, False])
def test_nan_and_infinity_stay_in_their_rows(relu: bool) -> None:
    floats = x, weight, _ = [tensor.float() for tensor in draw(30, 20, 40)]
    x[3, 4], x[17, 0], weight[5, 5] = torch.nan, torch.inf, 0
    torch.testing.assert_close(results(CPU, floats, relu), results(REFERENCE, floats, relu), equal_nan=True)


def test_a_rectifier_passes_no_gradient_where_it_gave_zero() -> None:
    x, weight = torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    out, dx, dweight = results(CPU, [x, weight], relu=True)
    assert out.tolist() == [[0, 1, 0]]
    assert torch.equal(dx, dweight[1:2] * weight[1] / x)
    assert not dweight[::2].any()


def test_bits_depend_neither_on_chance_nor_on_the_number_of_threads() -> None:
    floats = [tensor.float() for tensor in draw(5000, 96, 130)]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3, 2):
            torch.set_num_threads(count)
            found.append(results(CPU, floats, relu=True))
    finally:
        torch.set_num_threads(threads)
    assert all(all(map(torch.equal, result, found[0])) for result in found[1:])


def test_operators_and_second_derivatives() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(20, 8, 12))
    out = CPU(x, weight, bias, activation="relu")
    torch.library.opcheck(cpu.product, (x, None, weight, bias, True))
    torch.library.opcheck(cpu.product, (out, out, weight.mT, None, False))
    torch.library.opcheck(cpu.weight_gradient, (out, out, x, True))
    torch.library.opcheck(cpu.weight_gradient, (out, None, x, False))

    def second(function: partial) -> tuple[Tensor, ...]:
        leaves = [tensor.detach().requires_grad_() for tensor in (x, weight, bias)]
        gradients = torch.autograd.grad(function(*leaves, "relu").pow(3).sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), leaves)

    torch.testing.assert_close(second(CPU), second(REFERENCE), rtol=1e-5, atol=1e-5)


def test_compiled() -> None:
    floats = [tensor.float() for tensor in draw(50, 8, 12)]
    torch.compiler.reset()
    compiled = torch.compile(CPU, fullgraph=True, backend="aot_eager")
    assert all(map(torch.equal, results(partial(compiled), floats), results(CPU, floats)))


def test_gradients_that_nobody_wants_are_not_computed() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(40, 8, 12))
    for wanted in (x, weight, bias):
        wanted.requires_grad_()
        torch.testing.assert_close(
            torch.autograd.grad(CPU(x, weight, bias).sum(), wanted),
            torch.autograd.grad(REFERENCE(x, weight, bias).sum(), wanted),
        )
        wanted.requires_grad_(False)
    assert not CPU(x, weight, bias).requires_grad


def test_small_products_and_autocast_are_torchs() -> None:
    kernels.forget()
    x, weight, bias = (tensor.float() for tensor in draw(4096, 64, 32))
    assert torch.equal(kernels.linear(x[:5], weight, bias), F.linear(x[:5], weight, bias))
    assert torch.equal(kernels.linear(x[:5], weight, None, "relu"), F.linear(x[:5], weight).relu())
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.linear(x, weight, bias).dtype == torch.bfloat16
    assert "linear" not in kernels.ran()
    kernels.linear(x, weight, bias)
    assert kernels.ran()["linear"] == [
        next(n for n, why in kernels.backends("linear", x.dtype, "cpu").items() if not why)
    ]
    assert kernels.linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
    assert kernels.linear(x.double(), weight.double()).dtype == torch.float64


def test_reference_is_differentiable_twice() -> None:
    tensors = [tensor.requires_grad_() for tensor in draw(2, 3, 4)]
    assert torch.autograd.gradcheck(REFERENCE, tensors)
    assert torch.autograd.gradgradcheck(REFERENCE, tensors)


def test_bad_shapes_and_dtypes_are_refused() -> None:
    x, weight, bias = (tensor.float() for tensor in draw(3, 4, 5))
    with pytest.raises(
        ValueError, match=r"linear: expected x \(..., K\) and weight \(N, K\), got \(3, 3\) and \(5, 4\)"
    ):
        CPU(x[:, :3], weight)
    with pytest.raises(ValueError, match=r"linear: expected bias of shape \(N\) = \(5,\), got \(4,\)"):
        CPU(x, weight, bias[:4])
    with pytest.raises(ValueError, match="linear: expected activation None or 'relu', got 'gelu'"):
        CPU(x, weight, bias, "gelu")
    with pytest.raises(ValueError, match="linear: the backend 'cpu' cannot run: it computes in float32"):
        CPU(x.bfloat16(), weight.bfloat16())


NARROWER = """
import sys
sys.path.insert(0, sys.argv[2])
from kernels import build
build._FLAGS = ("-O1", f"-march={sys.argv[1]}", *(f for f in build._FLAGS if not f.startswith(("-O", "-march"))))
from test_linear import CPU, REFERENCE, RESULTS, SHAPES, draw, results
from tolerance import assert_all_as_good
for shape in SHAPES:
    tensors = draw(*shape)
    floats = [tensor.float() for tensor in tensors]
    assert_all_as_good(RESULTS, results(CPU, floats), results(REFERENCE, floats), results(REFERENCE, tensors))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86-64 levels")
@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3"])
def test_narrower_processors(level: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    subprocess.run([sys.executable, "-c", NARROWER, level, str(Path(__file__).parent)], check=True)
