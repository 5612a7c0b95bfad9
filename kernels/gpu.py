"""What the Triton backends of all operations share: where they can run, and what a call may leave out."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_PLAIN = (Tensor, nn.Parameter, type(None))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why Triton cannot run programs on such tensors here, with the remedy; None = it can."""
    if device is not None and device.type != "cuda" and not interpreted():
        return f"it serves CUDA tensors, not {device.type}: move them, or take another backend"
    if dtype not in (None, torch.float32, torch.bfloat16, torch.float16):
        return f"it computes in float32, not {dtype}: take backend='reference'"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: torch's CUDA builds bring it (pip install triton)"
    if not torch.cuda.is_available() and not interpreted():
        return "torch sees no GPU: is there one, and is torch built for it?"
    return None


def interpreted() -> bool:
    """Whether Triton is asked to run its programs on the CPU, slowly, as tests do."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but torch's eager mode will see a call on these: then it need not go by way of an operator.

    As `native.plain`, of tensors on any device that has memory.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or peek_interpreter_stack() is not None:
        return False
    for tensor in tensors:  # noqa: SIM110, a generator would take twice the time
        if type(tensor) not in _PLAIN or (tensor is not None and tensor.is_meta):
            return False
    return True


def strides(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    """A tensor's strides; zeros where there is none."""
    return (0,) * rank if tensor is None else tensor.stride()


def power_of_two(number: int) -> int:
    """The least that is not below: the sides of Triton's tiles are such."""
    return 1 << max(0, number - 1).bit_length()


def no_second_derivatives(op: str) -> Callable[..., NoReturn]:
    """The backward pass of a backward pass that has none."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(f"{op}: the backend 'triton' has no second derivatives: take backend='reference'")

    return refuse
