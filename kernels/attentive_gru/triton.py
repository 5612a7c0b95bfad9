"""The attentive GRU on GPUs, step by step, its attention by the Triton kernel of additive_attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kernels import gpu
from kernels.additive_attention import triton
from kernels.attentive_gru import reference

RANK = 15
FALLBACK = False
why_not = gpu.why_not


def attentive_gru(*tensors: Any) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.attentive_gru`. Returns h (B, T, H), c (B, T, E), the last state (B, H)."""
    return reference.stepwise(triton.additive_attention, *tensors)
