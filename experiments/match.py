"""One budget for all: the widths at which architectures have equal parameters, FLOPs per token, or state bytes.

Everything is measured on the meta device, by building the backbone: no formula per architecture. A `Config` names the
two fields that may be solved, `width` then `inner`; what the user set is left alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import archs
from archs.contract import Backbone, Tokens
from experiments import strict
from experiments.config import Budget
from experiments.errors import UserError
from experiments.variants import Variant

MET, REFUSED = 0.05, 0.10
"""Deviations from the budget: within the first it is met, beyond the second the experiment does not run."""
_STRIDE, _MOST = 8, 8**5
"""Factor between the multiples of a granule that bracket the budget, and the largest that is tried."""

UNITS = {"parameters": "parameters", "flops": "FLOPs per token", "state": "state bytes", "none": "parameters"}


@dataclass(frozen=True)
class Shape:
    """What one architecture meets in one task: vocabulary, and source and target columns of the longest training."""

    vocab_size: int
    source: int
    target: int


@dataclass(frozen=True, kw_only=True)
class Match:
    """How an architecture meets the budget."""

    by: str
    budget: float | None
    """None without matching."""
    value: float
    """What it has of `by`."""
    deviation: float | None
    """value / budget - 1."""
    solved: dict[str, int]
    """The fields of its Config that were solved."""
    parameters: int
    """Trainable."""
    core_parameters: int
    """Trainable, without embeddings and readout."""


def parameters(backbone: nn.Module) -> int:
    """Trainable parameters; tied ones count once."""
    return sum(parameter.numel() for parameter in backbone.parameters() if parameter.requires_grad)


def core_parameters(backbone: Backbone) -> int:
    """Trainable parameters without those of `nn.Embedding` modules and of the readout."""
    outside = [module for module in backbone.modules() if isinstance(module, nn.Embedding)] + [backbone.readout]
    excluded = {id(parameter) for module in outside for parameter in module.parameters()}
    kept = (parameter for parameter in backbone.parameters() if id(parameter) not in excluded)
    return sum(parameter.numel() for parameter in kept if parameter.requires_grad)


def flops(backbone: Backbone, shape: Shape) -> float:
    """FLOPs of a forward pass to the features, per source or target token.

    As torch's FlopCounterMode counts them: matrix products, convolutions and attention. Elementwise work, such as the
    recurrence of a selective scan, and the readout are not counted.
    """
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        backbone.features(_source(shape), torch.zeros(1, shape.target, dtype=torch.int64, device="meta"))
    return counter.get_total_flops() / (shape.source + shape.target)


def state_bytes(backbone: Backbone, shape: Shape) -> int:
    """Bytes of one row's state after encoding the source."""
    with torch.no_grad():
        return backbone.encode(_source(shape)).nbytes


def fit(
    variant: Variant, settings: Mapping[str, Any], shape: Shape, budget: Budget, guess: Match | None = None
) -> Match:
    """Solve the width and inner width of an architecture that `settings` leaves open.

    guess: a solution of the same variant in another task, taken over where it fits as well here.
    Raises UserError where the Config refuses the settings, or the nearest size is beyond 10 % of the budget.
    """
    sizes = _Sizes(variant, dict(settings), shape, budget)
    if budget.by == "none":
        return sizes.match({})
    if guess is not None and sizes.value(guess.solved) == guess.value:
        return sizes.match(guess.solved)
    match = sizes.match(_solve(sizes, budget.value))
    assert match.deviation is not None
    if abs(match.deviation) > REFUSED:
        raise UserError(_refusal(variant, match))
    return match


def _refusal(variant: Variant, match: Match) -> str:
    reached = ", ".join(f"{name} {value}" for name, value in match.solved.items()) or "the given sizes"
    return (
        f"{variant.label} cannot meet the budget of {match.budget:,.0f} {UNITS[match.by]}: the nearest is "
        f"{match.value:,.0f} ({match.deviation:+.0%}) with {reached}; change budget.value, leave its widths open, "
        f"or set budget.by none"
    )


class _Sizes:
    """One architecture with some fields open, as a function of them."""

    def __init__(self, variant: Variant, settings: dict[str, Any], shape: Shape, budget: Budget) -> None:
        self.variant, self.settings, self.shape, self.budget = variant, settings, shape, budget
        self.config = config_class(variant.spec)
        self.measured: dict[tuple[tuple[str, int], ...], float] = {}

    def open(self, which: str) -> tuple[str, int] | None:
        """Field and granule of `width` or `inner`; None where the user has set the field."""
        if not hasattr(self.config, which):
            raise UserError(
                f"{self.variant.label} cannot be matched: its Config declares no `{which}`; add the class variable "
                f'`{which} = ("field", granule)`, or set budget.by none'
            )
        field, granule = getattr(self.config, which)
        return None if field in self.settings else (field, granule)

    def accepts(self, solved: Mapping[str, int]) -> bool:
        """Whether the Config allows these values."""
        try:
            strict.build(self.config, {**self.settings, **solved}, self.variant.name)
        except (ValueError, ArithmeticError):
            return False
        return True

    def value(self, solved: Mapping[str, int]) -> float:
        """What the architecture has of the budget's quantity."""
        key = tuple(sorted(solved.items()))
        if key not in self.measured:
            self.measured[key] = self._measure(self.build(solved))
        return self.measured[key]

    def build(self, solved: Mapping[str, int]) -> Backbone:
        """The backbone on the meta device."""
        config = resolve(self.variant, {**self.settings, **solved})
        try:
            with torch.device("meta"):
                return archs.build(self.variant.spec, self.shape.vocab_size, **config)
        except ValueError as error:
            raise UserError(str(error)) from error
        except Exception as error:
            raise UserError(f"{self.variant.label} cannot be built: {type(error).__name__}: {error}") from error

    def _measure(self, backbone: Backbone) -> float:
        with warnings.catch_warnings():
            # The meta device has no fast kernels; that says nothing of the run.
            warnings.simplefilter("ignore")
            if self.budget.by == "flops":
                return flops(backbone, self.shape)
            if self.budget.by == "state":
                return state_bytes(backbone, self.shape)
            return core_parameters(backbone)

    def match(self, solved: dict[str, int]) -> Match:
        """The result with these values."""
        backbone, value = self.build(solved), self.value(solved)
        target = None if self.budget.by == "none" else self.budget.value
        return Match(
            by=self.budget.by,
            budget=target,
            value=value,
            deviation=None if target is None else value / target - 1,
            solved=solved,
            parameters=parameters(backbone),
            core_parameters=core_parameters(backbone),
        )


def config_class(spec: str) -> Any:
    """The Config of an architecture. Raises UserError for an unknown name or a file that is none."""
    try:
        return archs.load(spec).Config
    except ValueError as error:
        known = "" if spec.endswith(".py") else f" ({strict.nearest(spec, archs.names())})"
        raise UserError(f"{error}{known}") from error
    except Exception as error:
        raise UserError(f"the architecture {spec} does not import: {type(error).__name__}: {error}") from error


def resolve(variant: Variant, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every field of the architecture's Config. Raises UserError for what it refuses."""
    try:
        return asdict(strict.build(config_class(variant.spec), settings, variant.name))
    except ValueError as error:
        raise UserError(str(error)) from error
    except ArithmeticError as error:
        raise UserError(f"{variant.label} is no configuration: {error}") from error


def _solve(sizes: _Sizes, budget: float) -> dict[str, int]:
    """The open fields' values: the width nearest to the budget, then the inner width, at a neighbour if need be."""
    best: dict[str, int] = {}
    for width in _widths(sizes, budget):
        solved = {**width, **_inner(sizes, width, budget)}
        if not best or abs(sizes.value(solved) - budget) < abs(sizes.value(best) - budget):
            best = solved
        if abs(sizes.value(best) / budget - 1) <= MET:
            break
    return best


def _widths(sizes: _Sizes, budget: float) -> Iterator[dict[str, int]]:
    """The width nearest to the budget, then its neighbours below and above."""
    field = sizes.open("width")
    if field is None:
        yield {}
        return
    name, unit = field[0], _unit(sizes, *field)
    nearest = _nearest(lambda count: sizes.value({name: count * unit}), budget, degree=2)
    for count in (nearest, nearest - 1, nearest + 1):
        if count > 0:
            yield {name: count * unit}


def _unit(sizes: _Sizes, name: str, granule: int) -> int:
    """The smallest multiple of the granule that the Config accepts: heads must divide the width."""
    for unit in range(granule, 64 * granule + 1, granule):
        if sizes.accepts({name: unit}):
            return unit
    resolve(sizes.variant, sizes.settings)
    raise UserError(f"{sizes.variant.label} accepts no {name} up to {64 * granule} with {sizes.settings}; set {name}")


def _inner(sizes: _Sizes, width: Mapping[str, int], budget: float) -> dict[str, int]:
    """The inner width nearest to the budget; nothing where it is set, or has no influence."""
    field = sizes.open("inner")
    if field is None:
        return {}
    name, granule = field

    def value(count: int) -> float:
        return sizes.value({**width, name: count * granule})

    return {} if value(1) == value(_STRIDE) else {name: _nearest(value, budget, degree=1) * granule}


def _nearest(value: Callable[[int], float], budget: float, degree: int) -> int:
    """The count >= 1 at which a function that grows like count ** degree comes nearest to the budget.

    Interpolates within a bracket, on the degree-th root of the values, because one value may cost a second.
    """
    low = high = 1
    while value(high) < budget and high < _MOST:
        low, high = high, high * _STRIDE
    while high - low > 1:
        below, above, aim = (part ** (1 / degree) for part in (value(low), value(high), budget))
        share = (aim - below) / (above - below) if above > below else 0.5
        middle = min(max(low + round(share * (high - low)), low + 1), high - 1)
        low, high = (middle, high) if value(middle) < budget else (low, middle)
    return min(low, high, key=lambda count: abs(value(count) - budget))


def _source(shape: Shape) -> Tokens:
    return Tokens(torch.zeros(1, shape.source, dtype=torch.int64, device="meta"))
