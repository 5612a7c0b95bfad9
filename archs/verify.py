"""One function that checks a backbone against the whole contract."""

from __future__ import annotations

from dataclasses import dataclass

import torch

import kernels
from archs import rules, state_rules
from archs.contract import Backbone
from archs.probe import Probe, Rule

RULES: dict[str, Rule] = rules.RULES | state_rules.RULES
"""Every rule of the contract: name -> check."""


@dataclass(frozen=True)
class Verified:
    """What was checked, and on what: `rules` by name, and the kernel backends that ran, per operation."""

    backbone: str
    dtype: torch.dtype
    rules: tuple[str, ...]
    kernels: dict[str, list[str]]


class ContractError(Exception):
    """A backbone that breaks the contract. `broken`: rule -> what was measured."""

    def __init__(self, backbone: str, dtype: torch.dtype, broken: dict[str, list[str]]) -> None:
        self.broken = broken
        lines = [f"  {name}: {complaint}" for name, found in broken.items() for complaint in found]
        count = f"{len(broken)} rule{'s' * (len(broken) > 1)}"
        super().__init__(f"{backbone} breaks {count} of the contract in {dtype}:\n" + "\n".join(lines))


def verify_contract(backbone: Backbone, dtype: torch.dtype = torch.float64) -> Verified:
    """Check every rule in RULES on a copy of the backbone, with the weights it has, in eval mode.

    dtype: float64 (differences up to 1e-10 are rounding) or float32 (1e-4 of the largest value; the backends that
    'auto' picks are what is verified). Clears `kernels.ran()`, so that the report holds this check's backends only.

    Raises ContractError with every broken rule and its numbers; ValueError for another dtype, or for a vocabulary
    too small to tell tokens apart.
    """
    kernels.forget()
    probe = Probe.of(backbone, dtype)
    broken = {name: found for name, check in RULES.items() if (found := _complaints(check, probe))}
    if broken:
        raise ContractError(type(backbone).__name__, dtype, broken)
    return Verified(type(backbone).__name__, dtype, tuple(RULES), kernels.ran())


def _complaints(check: Rule, probe: Probe) -> list[str]:
    """What a rule finds; one that cannot run to its end is broken too."""
    found: list[str] = []
    try:
        with torch.no_grad():
            for complaint in check(probe):
                found.append(complaint)
    except Exception as error:
        found.append(f"raised {type(error).__name__}: {error}")
    return found
