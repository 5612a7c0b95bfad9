"""The backend that calls mamba_ssm, against a module in its place that records what it is given."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from scans import Case, as_float32
from torch import Tensor

import kernels
from kernels.selective_scan import mamba_ssm

CUDA = torch.device("cuda")


class Peer:
    """Computes with our reference, keeps its arguments, and like the package knows no gradient of the last state."""

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}

    def selective_scan_fn(self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **options: Any) -> Any:
        self.given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, **options}
        out, last_state = kernels.selective_scan(u, delta, A, B, C, **options, backend="reference")
        return out, last_state


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    mamba_ssm._peer.cache_clear()
    yield
    mamba_ssm._peer.cache_clear()


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    """The package, installed with its CUDA build."""
    fake = Peer()
    interface = ModuleType("mamba_ssm.ops.selective_scan_interface")
    interface.selective_scan_fn = fake.selective_scan_fn  # type: ignore[attr-defined]
    for name in ("selective_scan_cuda", "mamba_ssm", "mamba_ssm.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, interface.__name__, interface)
    return fake


@pytest.fixture
def here(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> Peer:
    """The package, on tensors of the CPU too."""
    monkeypatch.setattr(mamba_ssm, "why_not", lambda dtype, device: None)
    return peer


def without_state(case: Case) -> dict[str, Any]:
    tensors = as_float32(case)
    tensors.pop("initial_state", None)
    return {**tensors, "delta_softplus": case.options}


@pytest.mark.parametrize("case", [Case(9), Case(9, options=False, groups_B=0, groups_C=0)])
def test_values_and_gradients_are_the_packages(case: Case, here: Peer) -> None:
    arguments = without_state(case)
    leaves = [value.requires_grad_() for value in arguments.values() if isinstance(value, Tensor)]
    outputs = [kernels.selective_scan(**arguments, backend=backend) for backend in ("mamba_ssm", "reference")]
    assert torch.equal(*outputs)
    gradients = [torch.autograd.grad(output.sum(), leaves) for output in outputs]
    torch.testing.assert_close(*gradients)
    assert here.given["return_last_state"] is True
    assert here.given["delta_softplus"] is case.options


def test_it_is_given_one_dtype_over_time_and_float32_for_the_rest(here: Peer) -> None:
    arguments = {k: v.bfloat16() if isinstance(v, Tensor) else v for k, v in without_state(Case(9)).items()}
    out, last = kernels.selective_scan(**arguments, return_last_state=True, backend="mamba_ssm")
    assert {here.given[name].dtype for name in ("u", "delta", "B", "C", "z")} == {torch.bfloat16}
    assert {here.given[name].dtype for name in ("A", "D", "delta_bias")} == {torch.float32}
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    kernels.selective_scan(**{**arguments, "delta": arguments["delta"].float()}, backend="mamba_ssm")
    assert {here.given[name].dtype for name in ("u", "delta", "B", "C", "z")} == {torch.float32}


def test_an_initial_state_is_refused(here: Peer) -> None:
    tensors = as_float32(Case(9))
    with pytest.raises(ValueError, match="'mamba_ssm' cannot run: it takes no initial_state: take backend='auto'"):
        kernels.selective_scan(**tensors, delta_softplus=True, backend="mamba_ssm")
    assert not here.given


def test_a_gradient_through_the_last_state_is_refused(here: Peer) -> None:
    arguments = without_state(Case(9))
    arguments["u"].requires_grad_()
    out, last = kernels.selective_scan(**arguments, return_last_state=True, backend="mamba_ssm")
    out.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="no gradient through the last state: take backend='auto'"):
        (out.sum() + last.sum()).backward()


def test_more_states_than_it_takes_are_refused(here: Peer) -> None:
    with pytest.raises(ValueError, match="at most 256 states per channel, got 257"):
        kernels.selective_scan(**without_state(Case(1, channels=2, states=257)), backend="mamba_ssm")


@pytest.mark.usefixtures("peer")
def test_it_can_run_where_it_is_installed_on_its_device_and_dtypes() -> None:
    assert mamba_ssm.why_not(torch.bfloat16, CUDA) is None
    assert "serves CUDA tensors, not cpu" in (mamba_ssm.why_not(torch.float32, torch.device("cpu")) or "")
    assert "float32, not torch.float64" in (mamba_ssm.why_not(torch.float64, CUDA) or "")


@pytest.mark.parametrize("missing", ["selective_scan_cuda", "mamba_ssm.ops.selective_scan_interface"])
@pytest.mark.usefixtures("peer")
def test_without_its_cuda_build_it_says_how_to_get_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    assert f"{missing} halted" in (reason := mamba_ssm.why_not(torch.float32, CUDA) or "")
    assert "MAMBA_KEEP_CUDA_BUILD=TRUE pip install" in reason


@pytest.mark.usefixtures("here")
def test_auto_never_takes_it() -> None:
    kernels.forget()
    kernels.selective_scan(**without_state(Case(9)))
    assert "mamba_ssm" not in kernels.ran()["selective_scan"]
    assert list(kernels.backends("selective_scan"))[-1] == "mamba_ssm"
