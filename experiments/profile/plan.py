"""A profile -> its points: architectures matched to the budget, published models as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import archs
from experiments import match, strict
from experiments.config import Budget
from experiments.errors import UserError
from experiments.match import Shape
from experiments.profile import config
from experiments.profile.config import Profile
from experiments.profile.models import MODELS
from experiments.profile.point import Kind, Point
from experiments.variants import Variant, parse_all

SHAPE = 64
"""Source and target columns at which sizes are matched."""


@dataclass(frozen=True)
class Item:
    """One architecture of a profile, resolved."""

    label: str
    arch: str
    settings: dict[str, Any]
    """Every field of its Config."""
    vocab_size: int
    dtype: str
    parameters: int


def items(profile: Profile) -> list[Item]:
    """What is profiled, in order. Raises UserError for what does not exist, or cannot be."""
    found = [_item(profile, variant) for variant in parse_all(profile.archs, "arch")]
    labels = [item.label for item in found]
    for name in profile.beyond:
        if name not in labels:
            raise UserError(f"beyond names {name!r}, which is not profiled: {strict.nearest(name, labels)}")
    return found


def _item(profile: Profile, variant: Variant) -> Item:
    model = MODELS.get(variant.spec)
    given = {**variant.pick(profile.arch), **variant.settings}
    dtype = profile.dtype if profile.dtype != "auto" else model.dtype if model else "float32"
    if model is None:
        if variant.spec not in archs.names() and not variant.spec.endswith(".py"):
            known = [*archs.names(), *MODELS]
            raise UserError(f"unknown architecture or model {variant.spec!r}: {strict.nearest(variant.spec, known)}")
        budget, vocab_size, spec, settings = profile.budget, profile.vocab_size, variant.spec, given
    else:
        budget, vocab_size, spec = Budget(by="none"), model.vocab_size, model.arch
        settings = {**model.config, **given}
    sized = Variant(variant.label, spec)
    fit = match.fit(sized, settings, Shape(vocab_size, SHAPE, SHAPE), budget)
    resolved = match.resolve(sized, {**settings, **fit.solved})
    return Item(variant.label, spec, resolved, vocab_size, dtype, fit.parameters)


def device(profile: Profile) -> str:
    """cpu or cuda. Raises UserError where there is no such device."""
    there = torch.cuda.is_available()
    if profile.device == "cuda" and not there and not profile.predict:
        raise UserError("device is cuda, but torch finds no GPU: use --device cpu, or --predict, which needs none")
    if profile.predict or profile.device == "cpu":
        return "cpu"
    return "cuda" if there else "cpu"


def predictions(profile: Profile, found: list[Item]) -> list[Point]:
    """One point for each series, with all contexts of it."""
    return [
        _point(profile, item, "predicted", mode, rows, tuple(config.predicted_contexts(profile, item.label)))
        for item in found
        for mode, rows in series(profile)
    ]


def measurements(profile: Profile, found: list[Item]) -> list[Point]:
    """Every point to be measured, short contexts first."""
    if profile.predict:
        return []
    points = [
        _point(profile, item, "measured", mode, rows, (context,))
        for item in found
        for mode, rows in series(profile)
        for context in config.measured_contexts(profile, item.label)
    ]
    return sorted(points, key=lambda point: point.contexts)


def series(profile: Profile) -> Iterator[tuple[str, int]]:
    """Mode and rows of every line."""
    for mode in profile.modes:
        for rows in profile.decode_rows if mode == "decode" else (profile.rows,):
            yield mode, rows


def _point(profile: Profile, item: Item, kind: Kind, mode: str, rows: int, contexts: tuple[int, ...]) -> Point:
    measured = kind == "measured"
    return Point(
        kind=kind,
        label=item.label,
        arch=item.arch,
        arch_config=item.settings,
        vocab_size=item.vocab_size,
        dtype=item.dtype,
        device=device(profile) if measured else "cpu",
        mode=mode,
        contexts=contexts,
        rows=rows,
        chunk=profile.chunk,
        seconds=profile.seconds if measured else 0.0,
        fallback=profile.fallback,
        card="none" if measured else profile.card,
    )
