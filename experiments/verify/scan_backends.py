"""Every backend of the selective scan that runs here gives the recurrence's values and gradients."""

from __future__ import annotations

import torch
from torch import Tensor

import kernels
from experiments.verify import Finding

CLAIM = "a fused scan computes what the recurrence says, forwards and backwards"
SOURCE = "Gu & Dao 2023, section 3.3.2 and appendix D"
HOLDS_IF = "values and every gradient differ from the recurrence's in float64 by less than 1e-5 of their largest"

_SIZES = {"u": (2, 8, 300), "delta": (2, 8, 300), "A": (8, 16), "B": (2, 2, 16, 300), "C": (2, 2, 16, 300), "D": (8,),
          "z": (2, 8, 300), "delta_bias": (8,), "initial_state": (2, 8, 16)}  # fmt: skip


def check() -> Finding:
    """Run each on one problem with every option, against the reference."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    able = [name for name, why in kernels.backends("selective_scan", torch.float32, device).items() if why is None]
    truth = _results("reference", torch.float64, device)
    errors = {name: _error(_results(name, torch.float32, device), truth) for name in able if name != "reference"}
    here = ", ".join(f"{name} {error:.1g}" for name, error in errors.items())
    return Finding(f"on {device.type}: {here}", bool(errors) and max(errors.values()) < 1e-5)


def _results(backend: str, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Output, last state, and the gradients of all arguments."""
    generator = torch.Generator().manual_seed(0)
    given = {name: torch.randn(size, generator=generator, dtype=torch.float64) for name, size in _SIZES.items()}
    given["A"] = -given["A"].exp()
    arguments = {name: value.to(device, dtype).requires_grad_() for name, value in given.items()}
    results = kernels.selective_scan(**arguments, delta_softplus=True, return_last_state=True, backend=backend)
    ahead = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one) for one in results]
    return [*(one.detach() for one in results), *torch.autograd.grad(results, list(arguments.values()), ahead)]


def _error(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of the same tensor."""
    pairs = zip(found, truth, strict=True)
    return max(float((one - other).abs().max() / other.abs().max()) for one, other in pairs)
