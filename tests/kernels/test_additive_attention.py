"""Bahdanau's attention against a direct transcription of the paper's equations."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from contestants import backends
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.additive_attention import cpu

BACKENDS = backends("additive_attention")
FAST = backends("additive_attention", but="reference")
RESULTS = ("context", "dquery", "dkeys", "dvalues", "dv")


def draw(queries: int = 3, keys: int = 7, hidden: int = 5, width: int = 4) -> list[Tensor]:
    """query, keys, values, v, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, queries, hidden), (2, keys, hidden), (2, keys, width), (hidden,)]
    return [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]


def direct(query: Tensor, keys: Tensor, values: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """All terms at once."""
    scores = torch.tanh(query[:, :, None] + keys[:, None]) @ v
    if mask is not None:
        scores = scores.masked_fill(~mask[:, None], -torch.inf)
    return torch.softmax(scores, -1) @ values


MASK = torch.tensor([[0, 0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 1]], dtype=torch.bool)


@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_reference_is_the_papers_equations(mask: Tensor | None) -> None:
    leaves = [tensor.requires_grad_() for tensor in draw()]
    context = kernels.additive_attention(*leaves, mask, backend="reference")
    expected = direct(*leaves, mask)
    torch.testing.assert_close(context, expected)
    cotangent = torch.randn(context.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(c, leaves, cotangent) for c in (context, expected)))


def results(function: Callable[..., Tensor], tensors: list[Tensor], mask: Tensor | None) -> list[Tensor]:
    """The context and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    context = function(*leaves, mask)
    cotangent = torch.randn(context.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return [context.detach(), *torch.autograd.grad(context, leaves, cotangent.to(context.dtype))]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 7, 5, 4), (3, 16, 16, 16), (20, 65, 40, 17), (2, 1000, 32, 8)])
def test_values_and_gradients(sizes: tuple[int, ...], backend: str) -> None:
    tensors = [tensor.float() for tensor in draw(*sizes)]
    mask = torch.arange(sizes[1]).remainder(3).ne(1).expand(2, -1)
    with nan_in_fresh_memory():
        actual = results(partial(kernels.additive_attention, backend=backend), tensors, mask)
    plain, exact = results(direct, tensors, mask), results(direct, [tensor.double() for tensor in tensors], mask)
    assert_all_as_good(RESULTS, actual, plain, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_arguments(backend: str) -> None:
    tensors = [tensor.float() for tensor in draw(3, 7, 20, 18)]
    spread = [torch.stack([tensor, tensor + 1], -1)[..., 0] for tensor in tensors]
    spread[1] = tensors[1].transpose(0, 1).contiguous().transpose(0, 1)
    function = partial(kernels.additive_attention, backend=backend)
    torch.testing.assert_close(results(function, spread, MASK), results(function, tensors, MASK))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_passes_through(backend: str) -> None:
    query, keys, values, v = (tensor.float() for tensor in draw())
    query[0, 1, 2] = torch.nan
    context = kernels.additive_attention(query, keys, values, v, MASK, backend=backend)
    assert context[0, 1].isnan().all()
    assert int(context.isnan().sum()) == context.shape[2]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("large", ["keys", "queries", "both"])
def test_numbers_whose_exponentials_are_too_large(large: str, backend: str) -> None:
    query, keys, *rest = (tensor.float() for tensor in draw(70, 33, 20))
    if large != "keys":
        query = query * 40
    if large != "queries":
        keys = keys * 40
    tensors = [query, keys, *rest]
    plain, exact = results(direct, tensors, None), results(direct, [tensor.double() for tensor in tensors], None)
    actual = results(partial(kernels.additive_attention, backend=backend), tensors, None)
    assert_all_as_good(RESULTS, actual, plain, exact)


@pytest.mark.parametrize("backend", FAST)
def test_terms_far_from_zero_on_both_sides_cancel(backend: str) -> None:
    """tanh(q + k) where q and -k are large and near each other, on either side of the largest key for exponentials."""
    keys = torch.tensor([16.5, 17.5])[:, None, None] + torch.linspace(-0.4, 0.4, 9)[:, None]
    query, values, v = torch.full((2, 1, 1), -17.0), torch.eye(9).expand(2, 9, 9), torch.ones(1)
    weights = kernels.additive_attention(query, keys, values, v, backend=backend)
    torch.testing.assert_close(weights, direct(query.double(), keys.double(), values.double(), v.double()).float())


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(2, 3, 2, 2)]
    mask = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=torch.bool)

    def function(*tensors: Tensor) -> Tensor:
        return kernels.additive_attention(*tensors, mask, backend="reference")

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_real_key_is_zero(backend: str) -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw()]
    mask = MASK & torch.tensor([[False], [True]])
    context = kernels.additive_attention(*leaves, mask, backend=backend)
    assert context[0].eq(0).all()
    gradients = torch.autograd.grad(context.sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient[0].eq(0).all() for gradient in gradients[:3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_do_not_matter(backend: str) -> None:
    query, keys, values, v = (tensor.float() for tensor in draw())
    context = kernels.additive_attention(query, keys, values, v, MASK, backend=backend)
    garbage = [torch.where(MASK[..., None], tensor, 1e6) for tensor in (keys, values)]
    assert torch.equal(kernels.additive_attention(query, *garbage, v, MASK, backend=backend), context)


@pytest.mark.parametrize("backend", BACKENDS)
def test_holds_no_term_per_query_and_key(backend: str) -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw(queries=40, keys=40, hidden=30)]
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kernels.additive_attention(*leaves, backend=backend)
    assert sum(saved.values()) < 2 * sum(leaf.nbytes for leaf in leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    tensors = [tensor.float().requires_grad_() for tensor in draw()]
    compiled = torch.compile(kernels.additive_attention, fullgraph=True, backend="aot_eager")
    context = compiled(*tensors, MASK, backend=backend)
    torch.testing.assert_close(context, kernels.additive_attention(*tensors, MASK, backend=backend))
    context.sum().backward()
    assert all(tensor.grad is not None for tensor in tensors)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_shorter_floats(dtype: torch.dtype, backend: str) -> None:
    tensors = [tensor.to(dtype) for tensor in draw()]
    context = kernels.additive_attention(*tensors, backend=backend)
    in_float32 = kernels.additive_attention(*(tensor.float() for tensor in tensors), backend=backend)
    assert torch.equal(context, in_float32.to(dtype))


def test_refuses_what_does_not_fit() -> None:
    query, keys, values, v = draw()
    with pytest.raises(ValueError, match=r"expected keys of shape \(B, S, H\) = \(2, 7, 5\), got \(2, 7, 4\)"):
        kernels.additive_attention(query, keys[..., 1:], values, v)
    with pytest.raises(ValueError, match="expected v of shape"):
        kernels.additive_attention(query, keys, values, v[1:])
    with pytest.raises(ValueError, match="expected mask of shape"):
        kernels.additive_attention(query, keys, values, v, MASK[:, 1:])
    with pytest.raises(ValueError, match=r"expected a bool mask with True = real, got torch\.int64"):
        kernels.additive_attention(query, keys, values, v, MASK.long())
    with pytest.raises(ValueError, match="T >= 1"):
        kernels.additive_attention(query[:, :0], keys, values, v)


def test_opcheck() -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw()]
    torch.library.opcheck(cpu.attend, (*leaves, MASK))
    tensors = [tensor.detach() for tensor in leaves]
    torch.library.opcheck(cpu.attend_backward, (*cpu.attend(*tensors, MASK), *tensors, MASK))


def test_second_derivatives_name_the_reference() -> None:
    leaves = [tensor.float().requires_grad_() for tensor in draw()]
    (gradient,) = torch.autograd.grad(kernels.additive_attention(*leaves).sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


def test_bits_depend_neither_on_the_run_nor_on_the_threads() -> None:
    tensors = [tensor.float() for tensor in draw(20, 65, 40, 17)]
    expected = results(kernels.additive_attention, tensors, None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, results(kernels.additive_attention, tensors, None), expected))
    finally:
        torch.set_num_threads(before)
