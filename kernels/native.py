"""What the C++ of all operations shares on the side of Python: operators, autograd, and when it can run."""

from __future__ import annotations

import ctypes
import functools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from kernels import build

WORK_PER_THREAD = 2**18
"""Multiply-adds, about, that pay for waking a thread."""

_operators = torch.library.Library("archlab", "FRAGMENT")


@functools.cache
def library(source: Path, *defines: str) -> ctypes.CDLL | build.BuildError:
    """The C++ of operators, compiled and loaded, or why there is none here; see `build.attempt`."""
    built = build.attempt(source, *defines)
    if isinstance(built, ctypes.CDLL):
        ctypes.c_int64.in_dll(built, "work_per_thread").value = WORK_PER_THREAD
    return built


def operator(schema: str, fake: Callable[..., Any]) -> torch._ops.OpOverload:
    """Make an operator known to torch; what it does on the CPU is in a `library`, to be loaded before the first call.

    schema: 'name(arguments) -> results', as torch writes them. fake: from tensors without memory, the results without
    theirs. So torch.compile, FakeTensor and memory prediction work through it. Autograd is a Function's that calls
    it: one registered with the operator would take several times as long as the small scans it is for.
    """
    name = schema.partition("(")[0]
    _operators.define(schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.register_fake(f"archlab::{name}", fake, lib=_operators)
    return getattr(torch.ops.archlab, name).default


def readable(*tensors: Tensor | None) -> Sequence[Tensor | None]:
    """The tensors, those of dtypes that C++ does not read in float32."""
    for tensor in tensors:  # mostly in vain, and then quicker than making a list
        if tensor is not None and tensor.dtype not in READABLE:
            return [t if t is None or t.dtype in READABLE else t.float() for t in tensors]
    return tensors


def differentiable(tensors: Sequence[Tensor | None]) -> bool:
    """Whether autograd follows an operation on these."""
    if torch.is_grad_enabled():
        for tensor in tensors:  # a generator would take twice the time
            if tensor is not None and tensor.requires_grad:
                return True
    return False


def written(tensor: Tensor) -> None:
    """Tell autograd, which may have kept what was there, that an operator wrote into a tensor."""
    if not torch.compiler.is_compiling() and not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def once(op: str, backward: Callable[..., Any], *inputs: Any) -> Any:
    """Call a backward pass that has none of its own: differentiating its results raises, naming `reference`."""
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _Once.apply(op, backward, *inputs)
    return backward(*inputs)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, op: str, backward: Callable[..., Any], *inputs: Any) -> Any:
        ctx.op = op
        output = backward(*inputs)
        return tuple(output) if isinstance(output, list) else output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(f"{ctx.op}: the backend 'cpu' has no second derivatives: take backend='reference'")


_ABSENT = tuple((0,) * (1 + rank) for rank in range(6))
READABLE = (torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that C++ reads and writes: those of `TypedView` in tiles.h."""

_PLAIN = (Tensor, nn.Parameter, type(None))


def plain(*tensors: Tensor | None) -> bool:
    """Whether nothing but torch's eager mode will see a call on these, and all have memory here: then it need not go by
    way of an operator.

    An operator is what torch.compile, FakeTensor and the like understand; it costs 10 to 40 microseconds a call.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or peek_interpreter_stack() is not None:
        return False
    for tensor in tensors:  # noqa: SIM110, a generator would take twice the time
        if type(tensor) not in _PLAIN or not (tensor is None or tensor.is_cpu):
            return False
    return True


class Eager(torch.autograd.Function):
    """An operator's passes in eager mode: `work`, then what was registered with the operator for autograd."""

    @staticmethod
    def forward(ctx: Any, work: Callable[..., Any], save: Callable[..., None], backward: Callable, *inputs: Any) -> Any:
        output = work(*inputs)
        save(ctx, inputs, output)
        ctx.differentiate = backward
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, None, *ctx.differentiate(ctx, *gradients)


def run(
    operator: Callable[..., Any],
    work: Callable[..., Any],
    save: Callable[..., None],
    differentiate: Callable[..., tuple[Any, ...]],
    tensors: Sequence[Tensor | None],
    *settings: Any,
) -> Any:
    """The operator, or `work`, which is what it does, where nothing but eager mode will see it."""
    if not plain(*tensors):
        return operator(*tensors, *settings)
    if differentiable(tensors):
        return Eager.apply(work, save, differentiate, *tensors, *settings)
    return work(*tensors, *settings)


def run_backward(
    operator: Callable[..., Any], work: Callable[..., Any], tensors: Sequence[Tensor | None], *settings: Any
) -> Any:
    """The same of an operator that is a backward pass, and knows no other."""
    return (operator if torch.is_grad_enabled() or not plain(*tensors) else work)(*tensors, *settings)


def numbers(tensor: Tensor | None, rank: int) -> tuple[int, ...]:
    """Address and `rank` strides of a tensor, as a C structure holds them; all 0 where there is none.

    (B, D, L) as it is; (D, N) the same for every row; (D,) the same for every row and step. With rank 4 (B, G, N, L)
    as it is; (B, D, N) and (D, N) as one group per channel, the same for every step (and row).
    """
    if tensor is None:
        return _ABSENT[rank]
    strides = tensor.stride()
    return tensor.data_ptr(), *(strides if len(strides) == rank else _padded(strides, rank))


def _padded(strides: tuple[int, ...], rank: int) -> tuple[int, ...]:
    before = 1 if len(strides) < 3 else 0
    return (0,) * before + strides + (0,) * (rank - len(strides) - before)


def threads(work: int) -> int:
    """How many threads so much work deserves, at most torch's."""
    return min(torch.get_num_threads(), 1 + work // WORK_PER_THREAD)


def call(library: ctypes.CDLL | build.BuildError, function: str, problem: Sequence[int]) -> None:
    """Call a function of a library on a structure of 64-bit integers and addresses.

    The tensors behind it must outlive the call. Raises BuildError if there is no library, MemoryError if memory ran
    out.
    """
    if isinstance(library, build.BuildError):
        raise library
    if getattr(library, function)(struct.pack(f"{len(problem)}q", *problem)) != 0:
        raise MemoryError(f"{function}: out of memory")


def why_not(
    library: Callable[[], ctypes.CDLL | build.BuildError], dtype: torch.dtype | None, device: torch.device | None
) -> str | None:
    """Why a float32 library for the CPU cannot run such tensors here, with the remedy; None = it can.

    The library is built only if the tensors suit it.
    """
    if device is not None and device.type not in ("cpu", "meta"):
        return f"it serves CPU tensors, not {device.type}: move them, or take another backend"
    if dtype not in (None, *READABLE):
        return f"it computes in float32, not {dtype}: take backend='reference'"
    built = library()
    return str(built) if isinstance(built, build.BuildError) else None


def given(tensors: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> list[Tensor | None]:
    """The gradients of the arguments that were given, None for the others."""
    pairs = zip(tensors, gradients, strict=True)
    return [None if tensor is None else gradient for tensor, gradient in pairs]


def no_second_derivatives(op: str) -> Callable[..., NoReturn]:
    """The backward pass of a backward pass that has none."""

    def refuse(ctx: Any, *gradients: Any) -> NoReturn:
        raise RuntimeError(f"{op}: the backend 'cpu' has no second derivatives: take backend='reference'")

    return refuse
