"""The attentive GRU against torch's GRU cell and attention, and each backend against float64."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contestants import backends
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor, nn

import kernels
from kernels.attentive_gru import cpu

BACKENDS = backends("attentive_gru")
NAMES = (
    *("gates", "queries", "hidden", "weight_context", "weight_hidden"),
    *("bias_hidden", "weight_query", "keys", "values", "v"),
)
RESULTS = ("h", "c", "last", *(f"gradient of {name}" for name in NAMES))
MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


def draw(steps: int = 4, keys: int = 7, size: int = 5, units: int = 6, width: int = 3, rows: int = 2) -> list[Tensor]:
    """The arguments, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, steps, 3 * size), (rows, steps, units), (rows, size), (3 * size, width), (3 * size, size)]
    shapes += [(3 * size,), (units, size), (rows, keys, units), (rows, keys, width), (units,)]
    drawn = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [tensor * tensor.shape[-1] ** -0.5 if tensor.dim() < 3 else tensor for tensor in drawn]


def results(function: Callable, tensors: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """Every result and gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    values = function(*leaves, mask)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in values]
    return [*(v.detach() for v in values), *torch.autograd.grad(values, leaves, cotangents)]


def test_reference_is_torchs_cell_and_our_attention() -> None:
    gates, queries, hidden, weight_context, weight_hidden, bias, weight_query, keys, values, v = draw()
    cell = nn.GRUCell(3, 5, dtype=torch.float64)
    cell.load_state_dict(
        {"weight_ih": weight_context, "weight_hh": weight_hidden, "bias_ih": torch.zeros_like(bias), "bias_hh": bias}
    )
    h, (states, contexts, last) = hidden, kernels.attentive_gru(*draw(), MASK)
    for t in range(4):
        query = (h @ weight_query.mT + queries[:, t])[:, None]
        context = kernels.additive_attention(query, keys, values, v, MASK)[:, 0]
        cell.bias_ih = nn.Parameter(gates[0, t])
        h = torch.stack([cell(context[row], h[row]) for row in (0,)])
        torch.testing.assert_close(contexts[:1, t], context[:1])
        torch.testing.assert_close(states[:1, t], h)
        h = states[:, t]
    assert torch.equal(last, states[:, -1])


SIZES = [(1, 1, 1, 1, 1), (4, 7, 5, 6, 3), (3, 16, 16, 16, 16), (70, 65, 40, 33, 130), (9, 300, 128, 64, 256)]


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("backend", backends("attentive_gru", but="reference"))
def test_values_and_gradients(backend: str, sizes: tuple[int, ...], rows: int) -> None:
    tensors = [tensor.float() for tensor in draw(*sizes, rows=rows)]
    mask = torch.arange(sizes[1]).remainder(3).ne(1).expand(rows, -1)
    plain, exact = (
        results(partial(kernels.attentive_gru, backend="reference"), given, mask)
        for given in (tensors, [tensor.double() for tensor in tensors])
    )
    with nan_in_fresh_memory():
        actual = results(partial(kernels.attentive_gru, backend=backend), tensors, mask)
    assert_all_as_good(RESULTS, actual, plain, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_do_not_matter_and_a_row_without_keys_is_finite(backend: str) -> None:
    tensors = [tensor.float() for tensor in draw()]
    mask = MASK & torch.tensor([[True], [False]])
    garbage = [
        torch.where(mask[..., None], tensor, 1e6) if name in ("keys", "values") else tensor
        for name, tensor in zip(NAMES, tensors, strict=True)
    ]
    function = partial(kernels.attentive_gru, backend=backend)
    pairs = zip(results(function, tensors, mask), results(function, garbage, mask), strict=True)
    for clean, dirty in pairs:
        assert torch.equal(clean, dirty)
        assert clean.isfinite().all()


@pytest.mark.parametrize("used", [0, 1, 2])
def test_gradients_of_one_result_alone(used: int) -> None:
    tensors = [tensor.float() for tensor in draw()]
    alone = [
        results(
            lambda *given, backend=backend: kernels.attentive_gru(*given, backend=backend)[used : used + 1],
            tensors,
            MASK,
        )
        for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(*alone)


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(2, 3, 2, 2, 2)]
    assert torch.autograd.gradcheck(kernels.attentive_gru, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_two_pieces_are_the_whole(backend: str) -> None:
    gates, queries, hidden, *rest = (tensor.float() for tensor in draw(9, 20))
    whole = kernels.attentive_gru(gates, queries, hidden, *rest, backend=backend)
    first = kernels.attentive_gru(gates[:, :4], queries[:, :4], hidden, *rest, backend=backend)
    second = kernels.attentive_gru(gates[:, 4:], queries[:, 4:], first[2], *rest, backend=backend)
    torch.testing.assert_close(torch.cat([first[0], second[0]], 1), whole[0])
    torch.testing.assert_close(second[2], whole[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    tensors = [tensor.float() for tensor in draw()]
    compiled = torch.compile(partial(kernels.attentive_gru, backend=backend), fullgraph=True, backend="aot_eager")
    expected = results(partial(kernels.attentive_gru, backend=backend), tensors, MASK)
    for actual, eager in zip(results(compiled, tensors, MASK), expected, strict=True):
        torch.testing.assert_close(actual, eager)


def test_opcheck() -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw(4, 7, 16, 16, 32)]
    torch.library.opcheck(cpu.recur, (*leaves, MASK))
    tensors = [tensor.detach() for tensor in leaves]
    h, c, *kept = cpu.recur(*tensors, MASK)
    given = [t for name, t in zip(NAMES, tensors, strict=True) if name not in ("gates", "bias_hidden")]
    torch.library.opcheck(cpu.recur_backward, (h, c, h, c, *kept, *given, MASK))


def test_bits_depend_neither_on_the_run_nor_on_the_threads() -> None:
    tensors = [tensor.float() for tensor in draw(20, 65, 40, 33, 17, rows=3)]
    expected, before = results(kernels.attentive_gru, tensors, None), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, results(kernels.attentive_gru, tensors, None)[:3], expected[:3]))
    finally:
        torch.set_num_threads(before)


def test_refuses_what_does_not_fit() -> None:
    tensors = draw()
    with pytest.raises(ValueError, match=r"expected queries of shape \(B, T, A\) = \(2, 4, 6\), got \(2, 4, 5\)"):
        kernels.attentive_gru(tensors[0], tensors[1][..., 1:], *tensors[2:])
    with pytest.raises(ValueError, match="T >= 1"):
        kernels.attentive_gru(tensors[0][:, :0], *tensors[1:])
