"""Bahdanau's attention against a direct transcription of the paper's equations."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_as_good
from torch import Tensor

import kernels

BACKENDS = list(kernels.backends("additive_attention"))


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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", [None, MASK], ids=["unmasked", "masked"])
def test_values_and_gradients(mask: Tensor | None, backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in draw()]
    context = kernels.additive_attention(*leaves, mask, backend=backend)
    expected = direct(*leaves, mask)
    torch.testing.assert_close(context, expected)
    cotangent = torch.randn(context.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(*(torch.autograd.grad(c, leaves, cotangent) for c in (context, expected)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_error_in_float32(backend: str) -> None:
    tensors = [tensor.float() for tensor in draw(20, 65, 32, 16)]
    exact = direct(*(tensor.double() for tensor in tensors))
    assert_as_good("context", kernels.additive_attention(*tensors, backend=backend), direct(*tensors), exact)


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(2, 3, 2, 2)]
    mask = torch.tensor([[0, 1, 1], [0, 0, 0]], dtype=torch.bool)

    def function(*tensors: Tensor) -> Tensor:
        return kernels.additive_attention(*tensors, mask, backend="reference")

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_real_key_is_zero(backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in draw()]
    mask = MASK & torch.tensor([[False], [True]])
    context = kernels.additive_attention(*leaves, mask, backend=backend)
    assert context[0].eq(0).all()
    gradients = torch.autograd.grad(context.sum(), leaves)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert all(gradient[0].eq(0).all() for gradient in gradients[:3])


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_keys_do_not_matter(backend: str) -> None:
    query, keys, values, v = draw()
    context = kernels.additive_attention(query, keys, values, v, MASK, backend=backend)
    garbage = [torch.where(MASK[..., None], tensor, 1e6) for tensor in (keys, values)]
    assert torch.equal(kernels.additive_attention(query, *garbage, v, MASK, backend=backend), context)


@pytest.mark.parametrize("backend", BACKENDS)
def test_holds_no_term_per_query_and_key(backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(queries=40, keys=40, hidden=30)]
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
def test_shorter_floats(backend: str) -> None:
    tensors = [tensor.bfloat16() for tensor in draw()]
    context = kernels.additive_attention(*tensors, backend=backend)
    in_float32 = kernels.additive_attention(*(tensor.float() for tensor in tensors), backend=backend)
    assert torch.equal(context, in_float32.bfloat16())


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
