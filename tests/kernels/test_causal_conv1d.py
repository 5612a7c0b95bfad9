"""The causal convolution on every backend, against the float64 reference and torch's own convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from contestants import backends
from tolerance import assert_all_as_good, nan_in_fresh_memory
from torch import Tensor

import kernels
from kernels.causal_conv1d import cpu

BACKENDS = backends("causal_conv1d")
FAST = backends("causal_conv1d", but="reference")
RESULTS = ("out", "final_states", "dx", "dweight", "dbias", "dinitial_states")


def draw(length: int, width: int = 4, channels: int = 20, channel_last: bool = False) -> list[Tensor]:
    """x, weight, bias, initial_states, float64."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias, initial = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in [(2, channels, length), (channels, width), (channels,), (2, channels, width - 1)]
    )
    return [x.mT.contiguous().mT if channel_last else x, weight, bias, initial]


def as_float32(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]


def conv(tensors: list[Tensor], backend: str, activation: str | None = "silu") -> tuple[Tensor, Tensor]:
    return kernels.causal_conv1d(*tensors, return_final_states=True, activation=activation, backend=backend)


def results(tensors: list[Tensor], backend: str, activation: str | None = "silu") -> list[Tensor]:
    """out, final_states and every gradient."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    values = conv(leaves, backend, activation)
    generator = torch.Generator().manual_seed(1)
    cotangents = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in values]
    return [*(v.detach() for v in values), *torch.autograd.grad(values, leaves, cotangents)]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize("length", [1, 2, 3, 63, 64, 65, 1000])
def test_values_and_gradients(length: int, channel_last: bool, activation: str | None, backend: str) -> None:
    tensors = as_float32(draw(length, channel_last=channel_last))
    with nan_in_fresh_memory():
        actual = results(tensors, backend, activation)
    plain = results(tensors, "reference", activation)
    exact = results([tensor.double() for tensor in tensors], "reference", activation)
    assert_all_as_good(RESULTS, actual, plain, exact)


@pytest.mark.parametrize("width", [1, 2, 3, 7])
def test_reference_is_torchs_convolution(width: int) -> None:
    x, weight, bias, initial = draw(9, width)
    expected = F.conv1d(torch.cat([initial, x], 2), weight[:, None], bias, groups=20)
    out, final = conv([x, weight, bias, initial], "reference", None)
    torch.testing.assert_close(out, expected)
    assert torch.equal(final, torch.cat([initial, x], 2)[:, :, 9:])
    torch.testing.assert_close(conv([x, weight, bias, initial], "reference", "swish")[0], F.silu(expected))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize(
    ("length", "width", "channels"), [(9, 1, 33), (9, 2, 33), (9, 3, 33), (9, 7, 33), (600, 20, 290)]
)
def test_any_width(length: int, width: int, channels: int, channel_last: bool, backend: str) -> None:
    tensors = as_float32(draw(length, width, channels, channel_last))
    exact = results([tensor.double() for tensor in tensors], "reference")
    assert_all_as_good(RESULTS, results(tensors, backend), results(tensors, "reference"), exact)


def test_gradcheck() -> None:
    leaves = [tensor.requires_grad_() for tensor in draw(5, 3, channels=2)]
    assert torch.autograd.gradcheck(lambda *tensors: conv([*tensors], "reference"), leaves)
    assert torch.autograd.gradgradcheck(lambda *tensors: conv([*tensors], "reference"), leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cut", [1, 2, 5])
def test_two_pieces_are_the_whole(cut: int, backend: str) -> None:
    x, weight, bias, initial = as_float32(draw(9))
    out, final = conv([x, weight, bias, initial], backend)
    first, between = conv([x[..., :cut], weight, bias, initial], backend)
    second, last = conv([x[..., cut:], weight, bias, between], backend)
    torch.testing.assert_close(torch.cat([first, second], 2), out)
    assert torch.equal(last, final)


@pytest.mark.parametrize("backend", BACKENDS)
def test_final_states_hold_on_to_nothing(backend: str) -> None:
    tensors = as_float32(draw(500))
    _, final = conv(tensors, backend)
    assert final.untyped_storage().nbytes() == final.nbytes
    kept = final.clone()
    tensors[0].zero_()
    assert torch.equal(final, kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_defaults(backend: str) -> None:
    x, weight, *_ = as_float32(draw(9))
    out = kernels.causal_conv1d(x, weight, backend=backend)
    torch.testing.assert_close(out, F.conv1d(F.pad(x, (3, 0)), weight[:, None], groups=20))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_shorter_floats_are_computed_in_float32(dtype: torch.dtype, backend: str) -> None:
    tensors = [tensor.to(dtype) for tensor in draw(20)]
    out, final = conv(tensors, backend)
    assert (out.dtype, final.dtype) == (dtype, dtype)
    assert torch.equal(out, conv([tensor.float() for tensor in tensors], backend)[0].to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_reaches_the_filters_width_and_no_further(backend: str) -> None:
    tensors = as_float32(draw(90))
    tensors[0][0, 0, 40] = torch.nan
    out, _ = conv(tensors, backend)
    assert out[0, 0].isnan().nonzero().flatten().tolist() == [40, 41, 42, 43]
    assert int(out.isnan().sum()) == 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_as_one_graph(backend: str) -> None:
    leaves = [tensor.requires_grad_() for tensor in as_float32(draw(9))]
    compiled = torch.compile(conv, fullgraph=True, backend="aot_eager")
    out, _ = compiled(leaves, backend)
    assert torch.equal(out, conv(leaves, backend)[0])
    gradients = [torch.autograd.grad(result.sum(), leaves) for result in (out, conv(leaves, backend)[0])]
    torch.testing.assert_close(*gradients)


def test_refuses_what_does_not_fit() -> None:
    x, weight, bias, initial = draw(9)
    with pytest.raises(ValueError, match=r"expected weight of shape \(D, W\) = \(20, 4\), got \(19, 4\)"):
        kernels.causal_conv1d(x, weight[1:])
    with pytest.raises(ValueError, match="expected bias of shape"):
        kernels.causal_conv1d(x, weight, bias[1:])
    with pytest.raises(ValueError, match=r"expected initial_states of shape \(B, D, W - 1\) = \(2, 20, 3\)"):
        kernels.causal_conv1d(x, weight, bias, initial[..., 1:])
    with pytest.raises(ValueError, match="expected activation None, 'silu' or 'swish', got 'relu'"):
        kernels.causal_conv1d(x, weight, activation="relu")
    with pytest.raises(ValueError, match="expected x of shape"):
        kernels.causal_conv1d(x[0], weight)


def test_opcheck() -> None:
    assert cpu.why_not(None, None) is None
    tensors = as_float32(draw(9))
    torch.library.opcheck(cpu.convolve, (*tensors, True))
    torch.library.opcheck(cpu.convolve_backward, (torch.ones(2, 20, 9), *tensors, True))


def test_second_derivatives_name_the_reference() -> None:
    leaves = [tensor.requires_grad_() for tensor in as_float32(draw(9))]
    (gradient,) = torch.autograd.grad(conv(leaves, "cpu")[0].sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="backend='reference'"):
        gradient.sum().backward()


@pytest.mark.parametrize("channel_last", [False, True])
def test_bits_depend_neither_on_the_run_nor_on_the_threads(channel_last: bool) -> None:
    tensors = as_float32(draw(3000, channels=64, channel_last=channel_last))
    expected = results(tensors, "cpu")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert all(map(torch.equal, results(tensors, "cpu"), expected))
    finally:
        torch.set_num_threads(before)
