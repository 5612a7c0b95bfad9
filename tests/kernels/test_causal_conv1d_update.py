"""One step of the causal convolution on every backend, against the convolution."""

from __future__ import annotations

import pytest
import torch
from contestants import backends
from tolerance import assert_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.causal_conv1d_update import cpu

BACKENDS = backends("causal_conv1d_update")


def draw(width: int = 4, channels: int = 37, rows: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x, states, weight, bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(rows, channels), (rows, channels, width - 1), (channels, width), (channels,)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def convolved(x: Tensor, states: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None = "silu"):
    """out (B, D) and the columns after it, by the convolution's reference."""
    out, final = kernels.causal_conv1d(
        x[..., None], weight, bias, states, return_final_states=True, activation=activation, backend="reference"
    )
    return out[..., 0], final


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("columns_last", [False, True])
@pytest.mark.parametrize(("width", "channels"), [(1, 20), (2, 33), (3, 16), (4, 600), (9, 5)])
def test_a_step_is_the_convolutions(
    width: int, channels: int, columns_last: bool, activation: str | None, backend: str
) -> None:
    x, states, weight, bias = draw(width, channels)
    plain, after = convolved(x, states, weight, bias, activation)
    exact, _ = convolved(x.double(), states.double(), weight.double(), bias.double(), activation)
    states = states if columns_last else states.mT.contiguous().mT
    address = states.data_ptr()
    with nan_in_fresh_memory():
        out = kernels.causal_conv1d_update_(x, states, weight, bias, activation, backend=backend)
    assert_as_good("out", out, plain, exact)
    assert torch.equal(states, after)
    assert states.data_ptr() == address


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dtypes_are_kept(dtype: torch.dtype, backend: str) -> None:
    x, states, weight, bias = draw(dtype=dtype)
    wide = states.float()
    expected, after = convolved(x.float(), wide, weight.float(), bias.float())
    for given in (states, wide):
        out = kernels.causal_conv1d_update_(x, given, weight, bias, "silu", backend=backend)
        assert torch.equal(out, expected.to(dtype))
        assert torch.equal(given, after.to(given.dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_autograd_but_noticed_by_it(backend: str) -> None:
    x, states, weight, bias = draw()
    weight.requires_grad_()
    product = (weight[:, :3] * states).sum()
    assert not kernels.causal_conv1d_update_(x, states, weight, bias, backend=backend).requires_grad
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    x, states, weight, bias = draw()
    compiled = torch.compile(kernels.causal_conv1d_update_, fullgraph=True, backend="aot_eager")
    copies = states.clone()
    out = compiled(x, copies, weight, bias, "silu", backend=backend)
    assert torch.equal(out, kernels.causal_conv1d_update_(x, states, weight, bias, "silu", backend=backend))
    assert torch.equal(copies, states)
    torch._dynamo.reset()


def test_opcheck() -> None:
    torch.library.opcheck(cpu.update_, (*draw(), True))
    torch.library.opcheck(cpu.update_, (*draw()[:3], None, False))


def test_refuses_what_does_not_fit() -> None:
    x, states, weight, bias = draw()
    update = kernels.causal_conv1d_update_
    with pytest.raises(ValueError, match=r"expected weight of shape \(D, W\) = \(37, 4\), got \(36, 4\)"):
        update(x, states, weight[1:])
    with pytest.raises(ValueError, match=r"expected states of shape \(B, D, W - 1\) = \(2, 37, 3\)"):
        update(x, states[..., 1:], weight)
    with pytest.raises(ValueError, match="expected bias of shape"):
        update(x, states, weight, bias[1:])
    with pytest.raises(ValueError, match="expected activation None, 'silu' or 'swish', got 'relu'"):
        update(x, states, weight, activation="relu")
    with pytest.raises(ValueError, match=r"expected x of shape \(B, D\)"):
        update(x[0], states, weight)
    with pytest.raises(ValueError, match="memory of their own"):
        update(x, states[:1].expand(2, -1, -1), weight)
