"""The rule by which a fast backend is judged: against the same maths in plain torch, both against float64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

# With shorter vectors than AVX-512's, long sums are of fewer parts each, and round more.
_TIMES = 2 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 4


def assert_as_good(name: str, actual: Tensor, plain: Tensor, exact: Tensor) -> None:
    """At most twice (see _TIMES) the error of plain torch in the same dtype, plus 4 (on a GPU 32) eps max|exact|."""
    assert actual.shape == exact.shape, name
    if exact.numel() == 0:
        return
    # A GPU's own exponential is good to two units in the last place, and its errors, often of one sign, add up in time.
    scale = (32 if actual.is_cuda else 4) * _eps(plain) * float(exact.abs().max())
    error, allowed = _error(actual, exact), _TIMES * _error(plain, exact) + scale
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"


def assert_all_as_good(names: Iterable[str], *results: Iterable[Tensor]) -> None:
    """`assert_as_good` for each named triple of (actual, plain, exact)."""
    for name, actual, plain, exact in zip(names, *results, strict=True):
        assert_as_good(name, actual, plain, exact)


def _error(actual: Tensor, exact: Tensor) -> float:
    return float((actual.double() - exact).abs().max())


def _eps(tensor: Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


@contextmanager
def nan_in_fresh_memory():
    """Fill what torch hands out uninitialised with NaN, so that reading it before writing shows.

    What C++ asks for is filled with numbers near float32's largest where the C library is glibc.
    """

    def filled(make):
        def made(*arguments, **options):
            tensor = make(*arguments, **options)
            if tensor.is_floating_point():
                tensor.detach().fill_(float("nan"))
            return tensor

        return made

    with (
        _perturbed_malloc(),
        patch.object(torch, "empty", filled(torch.empty)),
        patch.object(torch, "empty_like", filled(torch.empty_like)),
        patch.object(torch.Tensor, "new_empty", filled(torch.Tensor.new_empty)),
    ):
        yield


@contextmanager
def _perturbed_malloc():
    perturb = -6  # M_PERTURB of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda setting, value: None)
    mallopt(perturb, 1)  # fresh memory is filled with the complement
    try:
        yield
    finally:
        mallopt(perturb, 0)
