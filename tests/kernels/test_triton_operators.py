"""The operators of the Triton backends, as torch.library wants them, under Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from triton_programs import interpret, needs_triton

from kernels.additive_attention import triton as attention
from kernels.causal_conv1d import triton as convolution
from kernels.causal_conv1d_update import triton as column
from kernels.selective_state_update import triton as step

interpreted = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="runs in a process of its own, below"
)


@needs_triton
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="this is that process")
def test_under_the_interpreter() -> None:
    interpret("test_triton_operators.py", "operator or derivatives")


def normal(*shapes: tuple[int, ...], followed: bool = False) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).requires_grad_(followed) for shape in shapes]


CONVOLUTION = ((2, 3, 5), (3, 4), (3,), (2, 3, 3))
ATTENTION = ((2, 3, 5), (2, 4, 5), (2, 4, 6), (5,))
STEP = ((2, 4, 3), (2, 4), (2, 4), (4, 3), (2, 1, 3), (2, 2, 3), (4,), (2, 4), (4,))
MASK = torch.tensor([[True, False, True, True], [False] * 4])


def calls() -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Operators and what they are called with."""
    attended = attention.attend(*normal(*ATTENTION), MASK)
    return {
        "convolution": (convolution.convolve, (*normal(*CONVOLUTION, followed=True), True)),
        "convolution, backward": (convolution.convolve_backward, (*normal((2, 3, 5), *CONVOLUTION), True)),
        "column": (column.update_, (*normal((2, 3), (2, 3, 3), (3, 4), (3,)), True)),
        "step": (step.update, (*normal(*STEP, followed=True), True)),
        "step in place": (step.update_, (*normal(*STEP), True)),
        "attention": (attention.attend, (*normal(*ATTENTION, followed=True), MASK)),
        "attention, backward": (attention.attend_backward, (attended[0], *attended, *normal(*ATTENTION), MASK)),
    }


@needs_triton
@interpreted
def test_operators() -> None:
    for operator, arguments in calls().values():
        torch.library.opcheck(operator, arguments)


@needs_triton
@interpreted
@pytest.mark.parametrize(
    ("operator", "shapes", "last"),
    [
        (convolution.convolve, CONVOLUTION, True),
        (attention.attend, ATTENTION, None),
    ],
)
def test_second_derivatives_name_the_reference(operator: Any, shapes: Any, last: Any) -> None:
    leaves = normal(*shapes, followed=True)
    results = operator(*leaves, last)
    out = results if isinstance(results, Tensor) else results[0]
    (gradient,) = torch.autograd.grad(out.sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="'triton' has no second derivatives: take backend='reference'"):
        gradient.sum().backward()


@needs_triton
@interpreted
def test_second_derivatives_of_a_step_are_the_references() -> None:
    leaves = normal(*STEP, followed=True)
    out, _ = step.selective_state_update(*leaves, True, False)
    expected, _ = step.reference.selective_state_update(*leaves, True, False)
    seconds = []
    for value in (out, expected):
        (gradient,) = torch.autograd.grad(value.square().sum(), leaves[2], create_graph=True)
        seconds.append(torch.autograd.grad(gradient.sum(), leaves[3])[0])
    torch.testing.assert_close(*seconds)
