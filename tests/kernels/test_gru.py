"""The GRU against torch's module, and each backend against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor, nn

import kernels
from kernels.gru import cpu

BACKENDS = list(kernels.backends("gru"))
NAMES = ("inputs", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "hidden")
RESULTS = ("h", "last", *(f"gradient of {name}" for name in NAMES))


def draw(rows: int = 2, steps: int = 4, size: int = 5, features: int = 3) -> list[Tensor]:
    """The arguments, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, steps, features), (3 * size, features), (3 * size, size), (3 * size,), (3 * size,), (rows, size)]
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor * tensor.shape[-1] ** -0.5 if tensor.dim() == 2 else tensor for tensor in drawn]


def results(function: Callable, tensors: list[Tensor]) -> list[Tensor]:
    """Every result and gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    values = function(*leaves)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in values]
    return [*(v.detach() for v in values), *torch.autograd.grad(values, leaves, cotangents)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_torchs_module(backend: str) -> None:
    rnn = nn.GRU(3, 5, batch_first=True, dtype=torch.float64)
    inputs, *_, hidden = draw()
    states, last = kernels.gru(inputs, *rnn.all_weights[0], hidden, backend="reference")
    dtype = torch.float32 if backend == "cpu" else torch.float64
    given = (tensor.to(dtype) for tensor in (inputs, *rnn.all_weights[0], hidden))
    for actual, expected in zip(kernels.gru(*given, backend=backend), (states, last), strict=True):
        torch.testing.assert_close(actual, expected.to(dtype))
    torch.testing.assert_close((states, last[None]), rnn(inputs, hidden[None]))
    torch.testing.assert_close(kernels.gru(inputs, *rnn.all_weights[0])[0], rnn(inputs)[0])


# Groups of one to four rows; columns that fill registers in every way.
SIZES = [(1, 1, 1, 1), (2, 4, 5, 3), (3, 64, 16, 16), (5, 65, 40, 33), (7, 9, 200, 8), (2, 1000, 32, 8)]


@pytest.mark.parametrize("sizes", SIZES)
def test_values_and_gradients(sizes: tuple[int, ...]) -> None:
    tensors = [tensor.float() for tensor in draw(*sizes)]
    plain, exact = (
        results(partial(kernels.gru, backend="reference"), given)
        for given in (tensors, [tensor.double() for tensor in tensors])
    )
    with nan_in_fresh_memory():
        actual = results(partial(kernels.gru, backend="cpu"), tensors)
    assert_all_as_good(RESULTS, actual, plain, exact)


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(2, 3, 2, 2)]
    assert torch.autograd.gradcheck(kernels.gru, leaves)
    assert torch.autograd.gradgradcheck(kernels.gru, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_pieces_are_the_whole(backend: str) -> None:
    inputs, *weights, hidden = (tensor.float() for tensor in draw(3, 9))
    states, last = kernels.gru(inputs, *weights, hidden, backend=backend)
    first, between = kernels.gru(inputs[:, :4], *weights, hidden, backend=backend)
    second, end = kernels.gru(inputs[:, 4:], *weights, between, backend=backend)
    torch.testing.assert_close((torch.cat([first, second], 1), end), (states, last))


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_short_floats(backend: str) -> None:
    tensors = [tensor.float() for tensor in draw(3, 6, 20, 18)]
    expected = kernels.gru(*tensors, backend=backend)
    strided = [tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for tensor in tensors]
    torch.testing.assert_close(kernels.gru(*strided, backend=backend), expected)
    states, _ = kernels.gru(*(tensor.bfloat16() for tensor in tensors), backend=backend)
    torch.testing.assert_close(states.float(), expected[0], atol=0.03, rtol=0.03)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extremes_saturate_and_nan_stays_in_its_row(backend: str) -> None:
    inputs, *rest = (tensor.float() for tensor in draw(3, 6, 20))
    inputs[0, 1], inputs[1, 2], inputs[2, 3, 0] = 1e4, -1e4, torch.nan
    states, _ = kernels.gru(inputs, *rest, backend=backend)
    torch.testing.assert_close(states, kernels.gru(inputs, *rest, backend="reference")[0], equal_nan=True)
    assert states[:2].isfinite().all()
    assert states[2, 3:].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    function = partial(kernels.gru, backend=backend)
    tensors = [tensor.float() for tensor in draw()]
    with torch._dynamo.config.patch(allow_rnn=True):  # what torch's own needs
        actual = results(torch.compile(function, fullgraph=True, backend="aot_eager"), tensors)
    torch.testing.assert_close(actual, results(function, tensors))


def test_opcheck() -> None:
    inputs, weight_ih, weight, bias_ih, bias, hidden = (tensor.float() for tensor in draw(size=16))
    gates = inputs @ weight_ih.mT + bias_ih
    torch.library.opcheck(cpu.recur, [tensor.requires_grad_() for tensor in (gates.detach(), hidden, weight, bias)])
    tensors = [tensor.detach() for tensor in (gates, hidden, weight, bias)]
    states, parts = cpu.recur(*tensors)
    torch.library.opcheck(cpu.recur_backward, (states, states, parts, hidden.detach(), weight.detach()))


def test_second_derivatives_name_the_reference() -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw()]
    (gradient,) = torch.autograd.grad(kernels.gru(*leaves)[0].sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


def test_bits_of_a_row_depend_neither_on_the_threads_nor_on_other_rows() -> None:
    gates, hidden, weight, bias = (torch.randn(*shape) for shape in [(7, 20, 96), (7, 32), (96, 32), (96,)])
    states, parts = cpu.recur(gates, hidden, weight, bias)
    gradients, before = cpu.recur_backward(gates[..., :32], states, parts, hidden, weight), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for rows in (slice(7), slice(1, 4), slice(6, 7)):
                again = cpu.recur(gates[rows], hidden[rows], weight, bias)
                assert all(map(torch.equal, again, (states[rows], parts[rows])))
                again = cpu.recur_backward(gates[rows, :, :32], *again, hidden[rows], weight)
                assert all(map(torch.equal, again, (gradient[rows] for gradient in gradients)))
    finally:
        torch.set_num_threads(before)


def test_refuses_what_does_not_fit() -> None:
    tensors = draw()
    with pytest.raises(ValueError, match=r"expected weight_ih of shape \(3 H, I\) = \(15, 3\), got \(15, 2\)"):
        kernels.gru(tensors[0], tensors[1][:, 1:], *tensors[2:])
    with pytest.raises(ValueError, match="T >= 1"):
        kernels.gru(tensors[0][:, :0], *tensors[1:])
