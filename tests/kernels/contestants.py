"""The backends that a contract is verified for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import kernels

ON_GPUS = ("cuda", "triton")


def backends(op: str, but: str = "") -> list[Any]:
    """The backends of an operation, as pytest's parameters: one for GPUs is left out unless Triton interprets it here.

    but: a backend that is not wanted.
    """
    reasons = kernels.backends(op, torch.float32, "cpu")
    skip = pytest.mark.skip(reason="needs a GPU")
    return [
        pytest.param(name, marks=[skip] if name in ON_GPUS and reason else [])
        for name, reason in reasons.items()
        if name != but
    ]
