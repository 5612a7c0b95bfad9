"""The selective scan on NVIDIA GPUs, in CUDA C++ (cuda.cu) compiled at first use by the NVRTC that torch brings.

Inputs in float32, float16 or bfloat16, states and sums in float32. No atomics: the same bits every time. Two operators
without side effects, each with a fake implementation. The forward pass keeps every 32nd state for the backward pass;
nothing waits for the GPU, so that a graph can capture it (compile first: run it once before capturing).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from kernels import cuda_driver, gpu, native
from kernels.selective_scan._cuda_problem import (
    DTYPES,
    MOST_STATES,
    WINDOW,
    Problem,
    Specialisation,
    common_dtype,
    groups_of,
    segment_length,
    specialise,
)
from kernels.selective_scan.reference import with_groups

RANK = 19
FALLBACK = False
WORKSPACE = 2**28
"""Bytes that the sums of B's and C's gradients may take while they are made; time is cut to keep to it."""

machine: cuda_driver.Machine = cuda_driver.Gpu("selective_scan/cuda.cu")


def why_not(dtype: torch.dtype | None, device: torch.device | None) -> str | None:
    """Why this backend cannot run such tensors here, with the remedy; None = it can."""
    if device is not None and device.type != "cuda":
        return f"it serves CUDA tensors, not {device.type}: move them, or take another backend"
    if dtype not in (None, *DTYPES):
        return f"it computes in float32, not {dtype}: take backend='reference'"
    return cuda_driver.why_not(device)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_scan`. Returns out (B, D, L), h_L (B, D, N)."""
    if not 1 <= A.shape[1] <= MOST_STATES:
        raise ValueError(
            f"selective_scan: the backend 'cuda' serves 1 to {MOST_STATES} states, not {A.shape[1]}: "
            "take backend='chunked'"
        )
    B, C = _same_groups(with_groups(B), with_groups(C))
    dtype = common_dtype(u, delta, B, C, z)
    x, delta, B, C, z = (_in(dtype, tensor) for tensor in (u, delta, B, C, z))
    A, D, bias, initial = (_in(torch.float32, tensor) for tensor in (A, D, delta_bias, initial_state))
    tensors = (x, delta, A, B, C, D, z, bias, initial)
    out, last_state = _scan_of(tensors, delta_softplus)
    return _in(u.dtype, out), last_state


def _in(dtype: torch.dtype, tensor: Any) -> Any:
    """The tensor, if there is one, in a dtype; to ask takes a tenth of the time of a conversion that does nothing."""
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def _scan_of(tensors: tuple[Tensor | None, ...], softplus: bool) -> Any:
    """By the operator, or where nothing but eager mode will see it, by what that does."""
    keep = native.differentiable(tensors)
    arguments: Any = (*tensors, softplus, keep)
    if not gpu.plain(*tensors):
        return scan(*arguments)[:2]
    return (native.Eager.apply(_scan, _save, _differentiate, *arguments) if keep else _scan(*arguments))[:2]


def _same_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """B and C with equally many groups; a constant as it is."""
    if B.dim() == 2 or C.dim() == 2 or B.shape[1] == C.shape[1]:
        return B, C
    groups = math.lcm(B.shape[1], C.shape[1])
    return B.repeat_interleave(groups // B.shape[1], 1), C.repeat_interleave(groups // C.shape[1], 1)


def _scan_results(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Of `_scan`, from its arguments: uninitialised, or without memory as these are."""
    (rows, channels, length), states, keep = u.shape, A.shape[1], others[-1]
    windows = (length - 1) // WINDOW if keep else 0
    return torch.empty_like(u), A.new_empty(rows, channels, states), A.new_empty(rows, windows, channels, states)


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass; u, delta, B, C and z of one dtype, the others float32.

    Returns out (B, D, L), h_L (B, D, N) and the state before every window but the first (B, windows - 1, D, N), which
    the backward pass needs; the last is empty unless `keep`.
    """
    tensors = (u, delta, A, B, C, D, z, bias, initial)
    results = _scan_results(*tensors, softplus, keep)
    out, last, kept = results
    if out.numel():
        run = _Run(False, tensors, softplus)
        run.views(out=out)
        run.problem.arrays(last=last, kept=kept if kept.numel() else None)
        run.over(0, u.shape[2])
        run.segments("scan_ends")
        run.launch("scan_forward")
    return results


scan = torch.library.custom_op("archlab::selective_scan_cuda", _scan, mutates_args=())
scan.register_fake(_scan_results)


class _Run:
    """The launches of one pass."""

    def __init__(self, backward: bool, tensors: Sequence[Any], softplus: bool) -> None:
        """tensors: u, delta, A, B, C, D, z, bias and initial, as for `_scan`."""
        u, delta, A, B, C, D, z, bias, initial = tensors
        self.u, self.states, self.groups = u, A.shape[1], groups_of(B, C)
        self.processors = machine.processors(u.device)
        self.specialisation: Specialisation = specialise(u, A, B, C, backward, self.processors)
        rows, channels, length = u.shape
        self.parts = -(-channels // self.groups // self.specialisation.channels)
        self.alive = [None if t is None else t.contiguous() for t in (A, D, bias, initial)]
        A, D, bias, initial = self.alive
        self.problem = Problem()
        self.problem.numbers(rows=rows, channels=channels, length=length, groups=self.groups, states=self.states)
        self.problem.numbers(parts=self.parts, softplus=int(softplus), reverse=int(backward))
        self.problem.arrays(A=A, D=D, bias=bias, initial=initial)
        self.problem.matrices(B=B, C=C)
        self.views(u=u, delta=delta, z=z)

    def views(self, **tensors: Tensor | None) -> None:
        """Tensors (B, D, L) of the problem."""
        per_group = self.u.shape[1] // self.groups
        self.problem.views(self.specialisation.across, per_group, **tensors)

    def over(self, begin: int, end: int) -> None:
        """The next launches are about these steps."""
        blocks = self.parts * self.groups * self.u.shape[0]
        length = segment_length(end - begin, blocks, self.specialisation, self.processors)
        self.pieces = -(-(end - begin) // length)
        self.problem.numbers(begin=begin, end=end, segment=length, segments=self.pieces)

    def room(self, *shape: int) -> Tensor:
        """Uninitialised float32 memory."""
        return self.u.new_empty(shape, dtype=torch.float32)

    def segments(self, kernel: str) -> None:
        """Find what flows into each segment, where there are several."""
        if self.pieces == 1:
            return
        rows, channels, _ = self.u.shape
        ends, sums = self.room(rows, self.pieces, channels, self.states), self.room(rows, self.pieces, channels)
        self.alive += [ends, sums]
        self.problem.arrays(ends=ends, sums=sums)
        self.launch(kernel)
        self.each("scan_join", rows * channels * self.states)

    def launch(self, kernel: str) -> None:
        """On one block for each row, segment, group and part of it."""
        self._start(kernel, self.u.shape[0] * self.pieces * self.groups * self.parts)

    def each(self, kernel: str, count: int) -> None:
        """On one thread for each of so many numbers."""
        self._start(kernel, -(-count // self.specialisation.threads))

    def _start(self, kernel: str, blocks: int) -> None:
        machine.launch(self.specialisation, kernel, blocks, self.problem.packed(), self.u.device)


def _scan_backward_results(dout: Tensor, dlast: Tensor, kept: Tensor, *others: Any) -> list[Tensor]:
    """Of `_scan_backward`, from its arguments."""
    *tensors, _ = others
    return [dlast.new_empty(0) if t is None else torch.empty_like(t) for t in tensors]


def _scan_backward(
    dout: Tensor,
    dlast: Tensor,
    kept: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    initial: Tensor | None,
    softplus: bool,
) -> list[Tensor]:
    """The gradients of u, delta, A, B, C, D, z, bias and initial; empty for what is absent."""
    tensors = (u, delta, A, B, C, D, z, bias, initial)
    results = _scan_backward_results(dout, dlast, kept, *tensors, softplus)
    if u.numel() == 0:
        return [result.zero_() for result in results]
    du, ddelta, dA, dB, dC, dD, dz, dbias, dinitial = results
    run = _Run(True, tensors, softplus)
    run.views(dout=dout, du=du, ddelta=ddelta, dz=None if z is None else dz)
    run.problem.arrays(kept=kept)
    run.problem.matrices(grad_B=dB, grad_C=dC)
    shares = {"A": (A, dA), "D": (D, dD), "bias": (bias, dbias)}
    shares |= {name: (m, dm) for name, m, dm in (("B", B, dB), ("C", C, dC)) if m.dim() == 2}
    totals = {name: _total(run, given, result) for name, (given, result) in shares.items()}
    run.problem.arrays(**{f"into_{name}": total for name, total in totals.items()})
    flow = dlast.contiguous()
    for begin, end in _stretches(run):
        flow = _stretch(run, begin, end, flow, B.dim() == 4, C.dim() == 4)
        run.problem.numbers(more=1)
    for name, (given, result) in shares.items():
        if given is not None and totals[name] is not result:
            result.copy_(totals[name])
    if initial is not None:
        dinitial.copy_(flow)
    return results


def _total(run: _Run, given: Tensor | None, result: Tensor) -> Tensor:
    """Where a sum over rows and time is to go: into the result itself, if that is contiguous and in float32."""
    if given is None:
        return run.room(run.u.shape[1])
    direct = result.dtype == torch.float32 and result.is_contiguous()
    return result if direct else run.room(*given.shape)


def _stretches(run: _Run) -> list[tuple[int, int]]:
    """Pieces of time, last first, whose workspace keeps to WORKSPACE."""
    rows, _, length = run.u.shape
    per_step = 2 * 4 * run.parts * rows * run.groups * run.states
    most = max(WINDOW, WORKSPACE // per_step // WINDOW * WINDOW)
    return [(begin, min(begin + most, length)) for begin in reversed(range(0, length, most))]


def _stretch(run: _Run, begin: int, end: int, flow: Tensor, varying_B: bool, varying_C: bool) -> Tensor:
    """The backward pass over some steps. Returns what flows on to the steps before, (B, D, N), as `flow` flowed in."""
    rows, channels, _ = run.u.shape
    run.over(begin, end)
    per_segment, states = (rows, run.pieces, channels), run.states
    of_matrix = (run.parts, rows, run.groups, end - begin, states)
    parts = {
        "dA": run.room(*per_segment, states),
        "dB": run.room(*of_matrix) if varying_B else run.room(*per_segment, states),
        "dC": run.room(*of_matrix) if varying_C else run.room(*per_segment, states),
        "dD": run.room(*per_segment),
        "dbias": run.room(*per_segment),
    }
    flow_on = run.room(rows, channels, states)
    run.problem.arrays(dlast=flow, dinitial=flow_on, **parts)
    run.segments("scan_ends_reverse")
    run.launch("scan_backward")
    matrices = sum(
        rows * run.groups * (end - begin) * states if varying else channels * states
        for varying in (varying_B, varying_C)
    )
    run.each("scan_sums", matrices + channels * states + 2 * channels)
    return flow_on


scan_backward = torch.library.custom_op("archlab::selective_scan_cuda_backward", _scan_backward, mutates_args=())
scan_backward.register_fake(_scan_backward_results)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.softplus, _ = inputs
    ctx.save_for_backward(output[2], *tensors)
    ctx.set_materialize_grads(False)  # else there are zeros for the kept states, which have no gradient


def _differentiate(ctx: Any, dout: Tensor | None, dlast: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    kept, *tensors = ctx.saved_tensors
    u, _, A, *_ = tensors
    dout = torch.zeros_like(u) if dout is None else dout
    dlast = A.new_zeros(*u.shape[:2], A.shape[1]) if dlast is None else dlast
    operator = torch.is_grad_enabled() or not gpu.plain(dout, *tensors)
    backward: Any = scan_backward if operator else _scan_backward
    gradients = backward(dout, dlast, kept, *tensors, ctx.softplus)
    return *native.given(tensors, gradients), None, None


def _no_second_derivatives(ctx: Any, *gradients: Any) -> NoReturn:
    raise RuntimeError("selective_scan: the backend 'cuda' has no second derivatives: take backend='reference'")


scan.register_autograd(_differentiate, setup_context=_save)
scan_backward.register_autograd(_no_second_derivatives)
