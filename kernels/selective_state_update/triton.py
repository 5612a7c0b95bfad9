"""One step of the selective scan on GPUs in Triton's language (_triton_kernels.py), compiled by Triton at first use.

Two operators, each with a fake implementation: one without side effects, with the reference's backward pass, and one
that writes the state where it lies, in its dtype. Nothing of the state's size is allocated for the latter, and nothing
waits for the GPU, so that a step can be captured in a graph.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kernels import gpu, native
from kernels.selective_state_update import reference

RANK = 15
FALLBACK = False
why_not = gpu.why_not

NUMBERS = 1024
"""Of the state, in a program."""


def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    in_place: bool,
) -> tuple[Tensor, Tensor]:
    """See `kernels.selective_state_update`; B and C are (B, G, N). Returns out (B, D), new state (B, D, N)."""
    given = (state, x, dt, A, B, C, D, z, dt_bias)
    if in_place:
        return _in_place(*given, dt_softplus), state
    eager = gpu.plain(*given) and not native.differentiable(given)
    return (_updated if eager else update)(*given, dt_softplus)


def _in_place(state: Tensor, *rest: Any) -> Tensor:
    *tensors, softplus = rest
    if not gpu.plain(state, *tensors):
        with torch.no_grad():
            return update_(state, *tensors, softplus)
    if not state.is_inference():
        torch.autograd.graph.increment_version(state)  # so that autograd notices, should it have kept the old one
    return _written(state, *tensors, softplus)


@torch.library.custom_op("archlab::selective_state_update_triton", mutates_args=())
def update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> tuple[Tensor, Tensor]:
    """Returns out (B, D) in the dtype of x, and the new state (B, D, N) in the dtype of the old."""
    return _updated(state, x, dt, A, B, C, D, z, bias, softplus)


@update.register_fake
def _results(state: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(state)


def _updated(*inputs: Any) -> tuple[Tensor, Tensor]:
    """The operator `update`, at work."""
    state, *tensors, softplus = inputs
    out, new = results = _results(state, tensors[0])
    _launch(softplus, state, new, out, *tensors)
    return results


@torch.library.custom_op("archlab::selective_state_update_triton_", mutates_args=("state",))
def update_(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
) -> Tensor:
    """As `update`, but the new state is written over the old one. Returns out (B, D)."""
    return _written(state, x, dt, A, B, C, D, z, bias, softplus)


@update_.register_fake
def _result(state: Tensor, x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _written(*inputs: Any) -> Tensor:
    """The operator `update_`, at work."""
    state, *tensors, softplus = inputs
    out = torch.empty_like(tensors[0])
    _launch(softplus, state, state, out, *tensors)
    return out


def _launch(
    softplus: bool,
    state: Tensor,
    new: Tensor,
    out: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
) -> None:
    if out.numel() == 0:
        return
    from kernels.selective_state_update import _triton_kernels

    rows, channels, states = state.shape
    width = gpu.power_of_two(states)
    block = max(1, min(NUMBERS // width, gpu.power_of_two(channels)))
    D_, z_, bias_ = (x if tensor is None else tensor for tensor in (D, z, bias))  # not read where there is none
    with torch.cuda.device_of(x):
        _triton_kernels.update[(rows * -(-channels // block),)](
            *(state, x, dt, A, B, C, D_, z_, bias_, new, out),
            *(channels, states, channels // B.shape[1], channels // C.shape[1]),
            *(*state.stride(), *x.stride(), *dt.stride(), *A.stride(), *B.stride(), *C.stride()),
            *(*gpu.strides(D, 1), *gpu.strides(z, 2), *gpu.strides(bias, 1), *new.stride(), *out.stride()),
            HAS_D=D is not None,
            HAS_Z=z is not None,
            HAS_BIAS=bias is not None,
            SOFTPLUS=softplus,
            BD=block,
            NP=width,
            enable_fp_fusion=True,
        )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.softplus = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, dout: Tensor, dnew: Tensor) -> tuple[Tensor | None, ...]:
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # views, so that one tensor given twice has two gradients
        tensors = [None if tensor is None else tensor.view_as(tensor) for tensor in ctx.saved_tensors]
        inputs: tuple[Any, ...] = (*tensors, ctx.softplus, False)
        values = reference.selective_state_update(*inputs)
        leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
        gradients = iter(torch.autograd.grad(values, leaves, (dout, dnew), create_graph=again))
    return *(None if tensor is None or not tensor.requires_grad else next(gradients) for tensor in tensors), None


update.register_autograd(_differentiate, setup_context=_save)
