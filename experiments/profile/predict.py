"""The same account as a measurement's, of fake tensors: no memory is taken and no device is needed.

The model lives on fake CPU tensors in its dtype, so that the fused attention and our kernels take part through their
fake implementations. An architecture that loops over time would be slow that way: what it takes is a polynomial of
degree two in the context, found from four short contexts, one of which checks it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import archs
import kernels
from archs.contract import Tokens
from experiments.profile.account import account
from experiments.profile.cards import CARDS, Card
from experiments.profile.models import Model
from experiments.profile.point import Point
from experiments.profile.subject import Subject, build, cast, warm_up

PROBES = (16, 24)
"""Two contexts at which the numbers of operations tell whether there is a loop over time."""
FITTED = ((256, 320, 384, 448), (512, 640, 768, 896))
"""Contexts of the polynomial, the last of which checks it, the longer ones where the shorter do not suffice. To the
byte: a trifle there is none at a million tokens."""
SMALL = 64 * 2**20
"""Bytes of parameters up to which a loop over time runs on real tensors: five times faster, and as exact."""


@contextmanager
def predictor(point: Point) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Within, a function from a context to what it takes, see `account`; "extrapolated" tells whether by polynomial."""
    kernels.forget()
    card = CARDS.get(point.card)
    with warnings.catch_warnings(), ExitStack() as faking:
        warnings.simplefilter("ignore")
        faking.enter_context(FakeTensorMode())
        subject = build(point)
        warm_up(subject)
        first, second = (account(subject, probe, card) for probe in PROBES)
        if first["operations"] == second["operations"]:
            yield lambda context: {"context": context, **account(subject, context, card), "extrapolated": False}
            return
        size = sum(parameter.nbytes for parameter in subject.backbone.parameters())
        if size <= SMALL:
            faking.close()
        subject = build(point)
        warm_up(subject)
        known, deviation = _fit(subject, card)
        yield lambda context: _extrapolated(known, context) | {"fit_deviation": deviation}


def predict(point: Point) -> list[dict[str, Any]]:
    """What each context of a point takes."""
    with predictor(point) as at:
        return [at(context) for context in point.contexts]


def state_bytes(model: Model, contexts: Sequence[int]) -> list[int]:
    """Bytes of one sequence's state after each context."""
    with FakeTensorMode(), torch.inference_mode():
        backbone = cast(archs.build(model.arch, model.vocab_size, **model.config), getattr(torch, model.dtype))
        return [backbone.encode(Tokens(torch.zeros(1, length, dtype=torch.int64))).nbytes for length in contexts]


def _extrapolated(known: dict[int, dict[str, Any]], context: int) -> dict[str, Any]:
    """The account at a context by the polynomials through those that are known."""
    names = known[min(known)]
    row = {name: _at(known, (name,), context) for name in names if name != "split"}
    split = {name: _at(known, ("split", name), context) for name in names["split"]}
    # Of two phases now one needs more, now the other: each has a polynomial of its own.
    needed = max(row["peak_bytes"], row["before_bytes"])
    return {"context": context, **row, "needed_bytes": needed, "split": split, "extrapolated": True}


def _fit(subject: Subject, card: Card | None) -> tuple[dict[int, dict[str, Any]], float]:
    """Accounts at three contexts, and how far the polynomial through them is off at a fourth."""
    for contexts in FITTED:
        known = {context: account(subject, context, card) for context in contexts}
        check = known.pop(contexts[-1])
        guesses = {name: _at(known, (name,), contexts[-1]) for name in ("peak_bytes", "before_bytes")}
        deviation = max(abs(guess - check[name]) / check["peak_bytes"] for name, guess in guesses.items())
        if not deviation:
            break
    return known, deviation


def _at(known: dict[int, dict[str, Any]], path: tuple[str, ...], context: int) -> Any:
    values: dict[int, Any] = {}
    for at, found in known.items():
        value: Any = found
        for name in path:
            value = value[name]
        values[at] = value
    if None in values.values():
        return None
    if path == ("roofline_seconds",):
        return float(polynomial(values, context))
    return max(0, round(polynomial(values, context)))


def polynomial(values: dict[int, Any], at: int) -> Fraction:
    """The polynomial through these points, exactly, at another (Lagrange)."""
    total = Fraction(0)
    for x, y in values.items():
        term = Fraction(y)
        for other in values:
            if other != x:
                term *= Fraction(at - other, x - other)
        total += term
    return total
