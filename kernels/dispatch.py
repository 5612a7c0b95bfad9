"""Which backend runs: found in the folders, chosen by what the arguments are, and remembered.

A backend is a module `kernels/<operation>/<backend>.py` with
    RANK       int; 'auto' tries the highest first
    FALLBACK   bool; True if 'auto' should say aloud that it had to use this one
    why_not(dtype, device) -> str | None    why it cannot run such tensors here, with the remedy; None = it can
    <operation>(...)                        the operation itself, on arguments that the operation's folder has checked
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

_ROOT = Path(__file__).parent
_ran: dict[str, list[str]] = {}
_fallbacks: dict[str, str] = {}
# What was asked for -> the backend that runs; so that asking again costs a microsecond.
_chosen: dict[tuple[str, str, torch.dtype, torch.device], str] = {}
# Operation -> backend -> function, filled in by `_modules`. torch.compile looks functions up here, as it cannot import;
# it reads a dictionary once per graph, so an operation's backends come all at once.
_functions: dict[str, dict[str, Callable[..., Any]]] = {
    file.parent.name: {} for file in sorted(_ROOT.glob("*/__init__.py"))
}


def operations() -> list[str]:
    """The operations that exist, sorted: the packages in this folder."""
    return list(_functions)


def backends(
    op: str, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> dict[str, str | None]:
    """Each backend of an operation, in the order in which 'auto' tries them, and why it cannot run (None = it can).

    dtype, device: ask about such tensors; None asks about those that suit the backend best. To give a true answer
    this compiles what must be compiled. Raises ValueError for an unknown operation.
    """
    device = None if device is None else torch.device(device)
    return {name: module.why_not(dtype, device) for name, module in _modules(op).items()}


def ran() -> dict[str, list[str]]:
    """The backends that have run in this process, per operation, in order of first use.

    What torch.compile traces counts at its tracing, not at each run.
    """
    return {op: list(names) for op, names in _ran.items()}


def fallbacks() -> dict[str, str]:
    """The operations for which 'auto' had to use a slow backend in this process, and which."""
    return dict(_fallbacks)


def forget() -> None:
    """Clear what `ran` and `fallbacks` remember; a fallback is then said aloud again."""
    _ran.clear()
    _fallbacks.clear()
    _chosen.clear()


def run(op: str, backend: str, *arguments: Any) -> Any:
    """Call the operation on a backend, or on the best one ('auto').

    The tensors among the arguments decide: their common dtype and their device. Raises ValueError if the backend is
    unknown or cannot run them, and where they are on several devices: a kernel would follow addresses of another's.
    """
    device = arguments[0].device
    name = _choose(op, backend, _common_dtype(op, device, arguments), device)
    return _functions[op][name](*arguments)


def _common_dtype(op: str, device: torch.device, arguments: tuple[Any, ...]) -> torch.dtype:
    """What numbers of the tensors' floating dtypes are together; others, of masks, do not count."""
    common = arguments[0].dtype
    for argument in arguments:
        if isinstance(argument, Tensor):
            if argument.device != device:
                raise ValueError(f"{op}: expected tensors on one device, got {device} and {argument.device}: move them")
            if (dtype := argument.dtype) is not common and dtype.is_floating_point:
                common = torch.promote_types(common, dtype)
    return common


@torch.compiler.assume_constant_result
def _choose(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    """The backend that is to run, noted as having run.

    Under torch.compile this happens once, while tracing: none of it depends on values.
    """
    asked = op, backend, dtype, device
    if (name := _chosen.get(asked)) is None:
        name = _best(op, dtype, device) if backend == "auto" else _named(op, backend, dtype, device)
        names = _ran.setdefault(op, [])
        if name not in names:
            names.append(name)
        _chosen[asked] = name
    return name


@functools.cache
def _modules(op: str) -> dict[str, ModuleType]:
    if op not in operations():
        raise ValueError(f"unknown operation {op!r}: expected one of {', '.join(operations())}")
    stems = [file.stem for file in (_ROOT / op).glob("*.py") if not file.stem.startswith("_")]
    modules = {stem: importlib.import_module(f"kernels.{op}.{stem}") for stem in stems}
    _functions[op].update({stem: getattr(module, op) for stem, module in modules.items()})
    return dict(sorted(modules.items(), key=lambda item: -item[1].RANK))


def _named(op: str, backend: str, dtype: torch.dtype, device: torch.device) -> str:
    modules = _modules(op)
    if backend not in modules:
        raise ValueError(f"{op} has no backend {backend!r}: expected 'auto' or one of {', '.join(modules)}")
    if reason := modules[backend].why_not(dtype, device):
        raise ValueError(f"{op}: the backend {backend!r} cannot run: {reason}")
    return backend


def _best(op: str, dtype: torch.dtype, device: torch.device) -> str:
    modules = _modules(op)
    if dtype == torch.float64:
        return "reference"  # whoever asks for float64 wants the plain maths
    reasons: dict[str, str] = {}
    for name, module in modules.items():
        reason = module.why_not(dtype, device)
        if reason is None:
            if module.FALLBACK:
                _say_fallback(op, name, reasons)
            return name
        reasons[name] = reason
    raise ValueError(f"{op}: no backend can run {dtype} on {device}: {_listed(reasons)}")


def _say_fallback(op: str, name: str, reasons: dict[str, str]) -> None:
    if op not in _fallbacks:
        _fallbacks[op] = name
        warnings.warn(f"{op} runs on its slow backend {name!r}: {_listed(reasons)}", stacklevel=2)


def _listed(reasons: dict[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
