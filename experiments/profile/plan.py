"""A profile -> its points: architectures matched to the budget, published models as they are."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

import archs
from archs.pretrained import read_pretrained
from experiments import match, resources, strict
from experiments.config import Budget
from experiments.errors import UserError
from experiments.match import Shape
from experiments.profile import config
from experiments.profile.config import Profile
from experiments.profile.models import MODELS
from experiments.profile.point import Item, Kind, Point
from experiments.variants import Variant, parse_all

SHAPE = 64
"""Source and target columns at which sizes are matched."""


def items(profile: Profile) -> list[Item]:
    """What is profiled, in order. Raises UserError for what does not exist, or cannot be."""
    if profile.pretrained:
        found = [_pretrained(profile, folder) for folder in profile.pretrained]
    else:
        found = [_item(profile, variant) for variant in parse_all(profile.archs, "arch")]
    labels = [item.label for item in found]
    for name in profile.beyond:
        if name not in (known := [*labels, *archs.names(), *MODELS]):  # a preset's may be left out by --archs
            raise UserError(f"beyond names {name!r}, which is no architecture: {strict.nearest(name, known)}")
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
    return _sized(Variant(variant.label, spec), settings, vocab_size, dtype, budget)


def _pretrained(profile: Profile, folder: str) -> Item:
    """A checkpoint: what it costs does not depend on its weights' values, so none is loaded."""
    try:
        found = read_pretrained(folder)
    except ValueError as error:
        raise UserError(str(error)) from error
    dtype = profile.dtype if profile.dtype != "auto" else found.dtype
    if dtype not in config.DTYPES:
        raise UserError(f"{folder} is stored in {dtype}, which is not profiled: give --dtype {'|'.join(config.DTYPES)}")
    variant = Variant(found.folder.name, found.arch, found.config)
    return _sized(variant, found.config, found.vocab_size, dtype, Budget(by="none"))


def _sized(variant: Variant, settings: dict[str, Any], vocab_size: int, dtype: str, budget: Budget) -> Item:
    fit = match.fit(variant, settings, Shape(vocab_size, SHAPE, SHAPE), budget)
    resolved = match.resolve(variant, {**settings, **fit.solved})
    return Item(variant.label, variant.spec, resolved, vocab_size, dtype, fit.parameters)


def device(profile: Profile) -> str:
    """cpu or cuda. Raises UserError where there is no such device."""
    there = torch.cuda.is_available()
    if profile.device == "cuda" and not there and not profile.predict:
        raise UserError("device is cuda, but torch finds no GPU: use --device cpu, or --predict, which needs none")
    if profile.predict or profile.device == "cpu":
        return "cpu"
    return "cuda" if there else "cpu"


def threads(profile: Profile) -> int:
    """Of the processor whose memory is profiled; 0 where a GPU's is."""
    gpu = profile.card != "none" or profile.device == "cuda" or device(profile) == "cuda"
    return 0 if gpu else resources.cores()


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


def trial(profile: Profile, predicted: Point, context: int) -> Point:
    """The measurement that confirms a predicted frontier, or does not."""
    return replace(
        predicted,
        kind="measured",
        contexts=(context,),
        device=device(profile),
        seconds=profile.seconds,
        card="none",
        limit=None,
    )


def traced(profile: Profile, found: list[Item]) -> list[Point]:
    """The point to be traced, if any. Raises UserError where it is none of the profile's architectures or modes."""
    if not profile.trace:
        return []
    label, mode, context = config.traced(profile)
    items = {item.label: item for item in found}
    if label not in items:
        raise UserError(f"trace names {label!r}, which is not profiled: {strict.nearest(label, items)}")
    rows = profile.decode_rows[0] if mode == "decode" else profile.rows
    return [_point(profile, items[label], "traced", mode, rows, (context,))]


def series(profile: Profile) -> Iterator[tuple[str, int]]:
    """Mode and rows of every line."""
    for mode in profile.modes:
        for rows in profile.decode_rows if mode == "decode" else (profile.rows,):
            yield mode, rows


def _point(profile: Profile, item: Item, kind: Kind, mode: str, rows: int, contexts: tuple[int, ...]) -> Point:
    measured = kind != "predicted"
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
        threads=threads(profile),
        card="none" if measured else profile.card,
        limit=config.limit(profile) if profile.frontier and not measured else None,
    )
