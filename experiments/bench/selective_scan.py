"""The selective scan against what a user can write or install today."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops.associative_scan import associative_scan

import kernels
from experiments.bench import _mamba_ssm
from experiments.bench._graphs import Graphed
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer

CHUNK = 16
"""Steps of one compiled graph."""
CALLS = 100
"""Calls on tensors so small that what is left is what a call costs."""
STATES = 16
_LOOPS = ("eager loop", "16-step chunk, compiled", "associative_scan, compiled", "mambapy pscan")


def cases(device: torch.device) -> Iterator[Case]:
    """The shape of a large layer, and two lengths at which training is compared; time against length; one call."""
    if device.type == "cuda":
        yield from _on_gpu(device)
    else:
        yield _case("forward", 1, 1536, 2048, device)
        yield _case("forward+backward", 1, 1536, 2048, device)
        for length in (1024, 4096):
            yield _case("forward", 2, 512, length, device)
            yield _case("forward+backward", 2, 512, length, device)
        yield _case("forward", 1, 1536, 2048, device, among=(), dtype=torch.bfloat16)
    for length in (2**10, 2**14, 2**18, 2**20):
        yield _case("forward", 1, 32, length, device, among=())
    for backward in (False, True):
        yield _calls(backward, device)


def _on_gpu(device: torch.device) -> Iterator[Case]:
    """As models are trained there, in bfloat16, against what is made for GPUs; once against what a user can write."""
    for rows, length in ((1, 2**11), (2, 2**11), (4, 2**11), (8, 2**11), (1, 2**16), (1, 2**18)):
        for mode in ("forward", "forward+backward"):
            among = ("mamba_ssm", "our triton") if length == 2**11 else ("mamba_ssm",)
            yield _case(mode, rows, 1536, length, device, dtype=torch.bfloat16, among=among)
    for mode in ("forward", "forward+backward"):
        yield _case(mode, 8, 1536, 2**11, device, dtype=torch.bfloat16, among=("mamba_ssm",), last=True)
    yield _case("forward", 1, 1536, 2**11, device, among=("eager loop", "16-step chunk, compiled"))


def _case(
    mode: str,
    rows: int,
    channels: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    among: Collection[str] | None = None,
    last: bool = False,
) -> Case:
    """among: the only peers to be asked, by default all. last: channels lie side by side, as in a model.

    On a GPU each is timed as one CUDA graph, the loops of small operations excepted: `_calls` tells what a call costs.
    """
    leaves = draw(rows, channels, length, device, dtype, last)
    plain = _detached(leaves)
    backward = mode != "forward"
    tensors = leaves if backward else plain
    elements = rows * channels * length
    size = dtype.itemsize
    floor = {"exp": elements * (STATES + 2), "copy": 4 * size * elements}
    if backward:
        # the backward pass computes every exp again, and reads and writes seven tensors
        floor = {"exp": 2 * elements * (STATES + 2), "copy": 11 * size * elements}
    contestants: dict[str, Any] = {
        "eager loop": lambda: _ours(tensors, "reference"),
        "16-step chunk, compiled": _compiled(_in_chunks, tensors),
        "associative_scan, compiled": _compiled(_associative, tensors),
        "mambapy pscan": peer("mambapy.pscan", lambda module: lambda: _pscan(module.pscan, tensors)),
        "mamba_ssm": peer("mamba_ssm.ops.selective_scan_interface", lambda m: _theirs(m, tensors), _mamba_ssm.find),
        "our triton": lambda: _ours(tensors, "triton"),
    }
    if among is None:
        among = [name for name in contestants if name != "our triton"]
    if backward:
        among = [name for name in among if name != "associative_scan, compiled"]  # has no backward pass on a CPU
    works: dict[str, Any] = {"ours": lambda: _ours(tensors, "auto")} | {name: contestants[name] for name in among}
    if backward:
        works = {name: work if isinstance(work, str) else _both(work, leaves) for name, work in works.items()}
    if backward and among:
        works["our forward pass alone"] = lambda: _ours(plain, "auto")
    if device.type == "cuda":
        works = {
            name: work if isinstance(work, str) or name in _LOOPS else Graphed(work) for name, work in works.items()
        }
    name = f"{mode} B={rows} D={channels} L={length}" + (f" {dtype}" if dtype != torch.float32 else "")
    return Case(name + ", channels last" * last, works.pop("ours"), floor, works, elements=elements)


def _calls(backward: bool, device: torch.device) -> Case:
    """Many calls, with or without a graph for gradients, beside as many of the smallest operation of torch."""
    tensors = draw(1, STATES, 1, device)
    given = tensors if backward else _detached(tensors)
    one = tensors["u"].detach()

    def calls() -> None:
        for _ in range(CALLS):
            _ours(given, "auto")

    def additions() -> None:
        for _ in range(CALLS):
            one + 1

    name = f"{CALLS} calls {'with' if backward else 'without'} gradients"
    return Case(name, calls, {}, {"torch's x + 1": additions}, elements=CALLS)


def draw(
    rows: int,
    channels: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    last: bool = False,
) -> dict[str, Tensor]:
    """Arguments as a freshly initialised layer would see them, with gate, skip and softplus; leaves of a graph.

    dtype: that of what varies in time. last: it lies (B, L, ...) in memory.
    """
    generator = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> Tensor:
        rows, columns, steps = shape
        drawn = torch.randn(rows, steps, columns, generator=generator, device=device, dtype=dtype).mT
        return drawn if last else drawn.contiguous()

    tensors = {
        "u": normal(rows, channels, length),
        "delta": normal(rows, channels, length).div_(2).sub_(4),
        "A": -torch.arange(1.0, STATES + 1, device=device).repeat(channels, 1),
        "B": normal(rows, STATES, length),
        "C": normal(rows, STATES, length),
        "D": torch.ones(channels, device=device),
        "z": normal(rows, channels, length),
        "delta_bias": torch.zeros(channels, device=device),
    }
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def _ours(tensors: dict[str, Tensor], backend: str) -> Tensor:
    u, delta, A, B, C, D, z, bias = (tensors[name] for name in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias"))
    return kernels.selective_scan(u, delta, A, B, C, D, z, bias, True, backend=backend)


def _detached(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _both(work: Work, leaves: dict[str, Tensor]) -> Work:
    """The work, then the gradients of all leaves."""
    cotangent = torch.ones_like(leaves["u"]).detach()

    def both() -> tuple[Tensor, ...]:
        return torch.autograd.grad(work(), list(leaves.values()), cotangent, allow_unused=True)

    return both


def _compiled(function: Any, tensors: dict[str, Tensor]) -> Work:
    ready: list[Any] = []

    def work() -> Tensor:
        if not ready:
            torch.compiler.reset()
            ready.append(torch.compile(function, dynamic=False))
        return ready[0](tensors) if function is _associative else _in_chunks(tensors, ready[0])

    if function is _in_chunks:
        function = _chunk
    return work


def _chunk(h: Tensor, delta: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs (B, D, T) and the state (B, D, N) after a few steps, unrolled into one graph."""
    outputs = []
    for t in range(delta.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + x[:, :, t, None] * B[:, None, :, t]
        outputs.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(outputs, -1), h


def _in_chunks(tensors: dict[str, Tensor], chunk: Any = _chunk) -> Tensor:
    u, delta, z = tensors["u"], _step_size(tensors), tensors["z"]
    h = u.new_zeros(u.shape[0], u.shape[1], STATES)
    over_time = (part.split(CHUNK, -1) for part in (delta, delta * u, tensors["B"], tensors["C"]))
    outputs = []
    for d, x, B, C in zip(*over_time, strict=True):
        y, h = chunk(h, d, x, tensors["A"], B, C)
        outputs.append(y)
    return (torch.cat(outputs, -1) + tensors["D"][:, None] * u) * F.silu(z)


def _associative(tensors: dict[str, Tensor]) -> Tensor:
    u, delta = tensors["u"], _step_size(tensors)
    decay = torch.exp(delta[..., None] * tensors["A"][:, None])  # (B, D, L, N)
    added = (delta * u)[..., None] * tensors["B"].mT[:, None]

    def combine(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return a[0] * b[0], b[0] * a[1] + b[1]

    _, h = associative_scan(combine, (decay, added), dim=2, combine_mode="generic")
    return ((h * tensors["C"].mT[:, None]).sum(-1) + tensors["D"][:, None] * u) * F.silu(tensors["z"])


def _pscan(pscan: Any, tensors: dict[str, Tensor]) -> Tensor:
    u, delta = tensors["u"], _step_size(tensors)
    decay = torch.exp(delta.mT[..., None] * tensors["A"])  # (B, L, D, N)
    added = (delta * u).mT[..., None] * tensors["B"].mT[:, :, None]
    y = (pscan(decay, added) @ tensors["C"].mT[..., None]).squeeze(-1).mT
    return (y + tensors["D"][:, None] * u) * F.silu(tensors["z"])


def _step_size(tensors: dict[str, Tensor]) -> Tensor:
    return F.softplus(tensors["delta"] + tensors["delta_bias"][:, None])


def _theirs(module: Any, tensors: dict[str, Tensor]) -> Work:
    return lambda: module.selective_scan_fn(**tensors, delta_softplus=True)
