"""The attentive GRU with its attention in Triton, without a GPU."""

from __future__ import annotations

import torch
from triton_programs import interpret, needs_triton

import kernels
from kernels.attentive_gru import triton as backend


@needs_triton
def test_keeps_the_contract_under_the_interpreter() -> None:
    """Which takes long for many steps and keys."""
    interpret("test_attentive_gru.py", "triton and (sizes1 or sizes2 or keys or pieces)")


def test_a_gpu_does_not_fall_back() -> None:
    """The reference, which would be said aloud, comes after it."""
    order = list(kernels.backends("attentive_gru", torch.float32, "cuda"))
    assert order.index("triton") < order.index("reference")
    assert not backend.FALLBACK
