"""The rotation in float32 on the CPU, in C++ (cpu.cpp); shorter floats are computed in float32.

An operator without side effects, with a fake implementation. Its gradient is itself, turning back.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import build, native

RANK = 20
FALLBACK = False


@functools.cache
def library() -> ctypes.CDLL | build.BuildError:
    """The compiled cpu.cpp, or why there is none here."""
    return build.attempt(Path(__file__).with_name("cpu.cpp"))


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can. Compiles at the first call."""
    return native.why_not(library, dtype, device)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """See `kernels.rotary`. Returns (B, H, T, E)."""
    given = x.float(), cos.float().contiguous(), sin.float().contiguous()
    return native.run(turn, _turn, _save, _differentiate, given, False).to(x.dtype)


@torch.library.custom_op("archlab::rotary_cpu", mutates_args=(), device_types="cpu")
def turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """All float32, cos and sin contiguous; `back` turns the other way."""
    return _turn(x, cos, sin, back)


@turn.register_fake
def _turned(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    rows, heads, length, features = x.shape
    # Heads side by side, as the products before and behind have them.
    return x.new_empty(rows, length, heads, features).transpose(1, 2)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, back: bool) -> Tensor:
    """The operator `turn`, at work."""
    if x.stride(3) != 1:
        x = x.contiguous()
    out = _turned(x, cos, sin, back)
    problem = [*x.shape, native.threads(8 * x.numel()), back, len(cos) > 1, cos.data_ptr(), sin.data_ptr()]
    for tensor in (x, out):
        problem += [tensor.data_ptr(), *tensor.stride()[:3]]
    native.call(library(), "rotary_turn", problem)
    return out


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, cos, sin, ctx.back = inputs
    ctx.save_for_backward(cos, sin)


def _differentiate(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    given = dout, *ctx.saved_tensors
    return native.run(turn, _turn, _save, _differentiate, given, not ctx.back), None, None, None


turn.register_autograd(_differentiate, setup_context=_save)
