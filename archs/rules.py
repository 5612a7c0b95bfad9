"""The rules of the contract on what is computed: logits, alignments, dropout.

The functions marked `@rule` are the documentation of the contract: a name, a sentence, and how it is measured.
`archs.verify.verify_contract` runs them all.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from archs.contract import Tokens
from archs.ids import BOS
from archs.probe import COLUMNS, LENGTHS, Complaints, Probe, Rule, difference, register

RULES: dict[str, Rule] = {}
"""Name -> check; the first line of a check's docstring says the rule."""

rule = partial(register, RULES)


@rule
def shapes(p: Probe) -> Complaints:
    """Logits are finite, (B, T, V), of the module's dtype: the readout of features (B, T, D)."""
    features = p.backbone.features(p.ragged, p.target)
    readout = p.backbone.readout
    if not isinstance(readout, nn.Linear) or features.shape != (*p.target.shape, readout.in_features):
        yield f"features have shape {tuple(features.shape)}, the readout is {readout}"
    yield from p.differ("forward against readout(features)", p.forward(p.ragged), readout(features))
    yield from _finite("logits", p.forward(p.ragged), p.dtype)


@rule
def fused(p: Probe) -> Complaints:
    """forward(source, target) is decode(encode(source), target)."""
    for name, source in p.sources.items():
        yield from p.differ(name, p.split(source), p.expected[name])


@rule
def chunks(p: Probe) -> Complaints:
    """Decoding in any chunks, or token by token, is forward."""
    for name, source in p.sources.items():
        for lengths in ((3, 4), (1, 6), (6, 1), (1,) * COLUMNS):
            yield from p.differ(f"{name} in chunks {lengths}", p.split(source, *lengths), p.expected[name])


@rule
def padding(p: Probe) -> Complaints:
    """Neither the ids in pads nor the number of pads matter."""
    assert p.ragged.mask is not None
    ids = torch.where(p.ragged.mask, p.ragged.ids, p.garbage((p.rows, max(LENGTHS))))
    wide = torch.cat([p.garbage((p.rows, 5)), ids], 1)
    wider = Tokens(wide, nn.functional.pad(p.ragged.mask, (5, 0), value=False))
    expected, decoded = p.forward(p.ragged), p.split(p.ragged)
    for what, source in (("garbage in the pads", Tokens(ids, p.ragged.mask)), ("five more pads", wider)):
        yield from p.differ(f"{what}, forward", p.forward(source), expected)
        yield from p.differ(f"{what}, decode", p.split(source), decoded)


@rule
def mask(p: Probe) -> Complaints:
    """mask=None is an all-True mask."""
    masked = Tokens(p.full.ids, torch.ones_like(p.full.ids, dtype=torch.bool))
    yield from p.differ("forward", p.forward(p.full), p.forward(masked))
    yield from p.differ("decode", p.split(p.full, 3, 4), p.split(masked, 3, 4))


@rule
def rows(p: Probe) -> Complaints:
    """A row alone is the row in a batch."""
    expected, decoded = p.forward(p.ragged), p.split(p.ragged)
    for row, length in enumerate(LENGTHS):
        alone = dataclasses.replace(p, target=p.target[row : row + 1])
        source = Tokens(p.ragged.ids[row : row + 1, -length:])
        yield from p.differ(f"row {row}, forward", alone.forward(source)[0], expected[row])
        yield from p.differ(f"row {row}, decode", alone.split(source)[0], decoded[row])


@rule
def causal(p: Probe) -> Complaints:
    """A target input changes the logits at its position and later, none before."""
    at = COLUMNS // 2
    changed = p.target.clone()
    changed[:, at] = p.other(changed[:, at])
    for name, source in p.sources.items():
        expected, got = p.expected[name], dataclasses.replace(p, target=changed).forward(source)
        yield from p.differ(f"{name}: before the change", got[:, :at], expected[:, :at])
        for column in range(at, COLUMNS):
            yield from _alike(p, f"{name}: target {at} at position {column}", got[:, column], expected[:, column])


@rule
def ends(p: Probe) -> Complaints:
    """The first and the last source token matter."""
    for name, source in p.sources.items():
        lengths = (max(LENGTHS),) * p.rows if source.mask is None else LENGTHS
        for end, columns in (("first", [max(LENGTHS) - length for length in lengths]), ("last", [-1] * p.rows)):
            ids = source.ids.clone()
            ids[range(p.rows), columns] = p.other(ids[range(p.rows), columns])
            yield from _alike(p, f"{name}: the {end} token", p.forward(Tokens(ids, source.mask)), p.expected[name])


def _alike(p: Probe, what: str, got: Tensor, expected: Tensor) -> Complaints:
    """A complaint for each row that a change did not reach."""
    for row in range(p.rows):
        if difference(got[row], expected[row]) <= p.noise(expected[row]):
            yield f"{what} has no effect in row {row}"


@rule
def bos(p: Probe) -> Complaints:
    """Pure language modelling, a source of [BOS] alone, is finite on both paths."""
    source = Tokens(torch.full((p.rows, 1), BOS, device=p.target.device))
    yield from _finite("forward", p.forward(source), p.dtype)
    yield from p.differ("decode", p.split(source, 3, 4), p.forward(source))


def _finite(what: str, logits: Tensor, dtype: torch.dtype) -> Complaints:
    if not logits.isfinite().all() or logits.dtype != dtype:
        yield f"{what}: {int((~logits.isfinite()).sum())} values are not finite, dtype {logits.dtype}"


@rule
def alignments(p: Probe) -> Complaints:
    """Alignments, where there are any, are (B, T, S), not negative, sum to at most 1, and are 0 on pads."""
    for name, source in p.sources.items():
        weights = p.backbone.alignments(source, p.target)
        if weights is None:
            continue
        if weights.shape != (*p.target.shape, source.ids.shape[1]):
            yield f"{name}: shape {tuple(weights.shape)}"
            continue
        largest, least = float(weights.sum(-1).max()), float(weights.min())
        if not (largest <= 1 + p.allowed(weights.new_ones(1)) and least >= 0):
            yield f"{name}: rows sum to {largest:.6f}, the least weight is {least:.2e}"
        if source.mask is not None and float((weights * ~source.mask[:, None]).max()) != 0:
            yield f"{name}: weight on pads"


@rule
def dropout(p: Probe) -> Complaints:
    """Dropout is off in eval mode, and in training comes from torch's generator alone."""
    once, again = (_seeded(p, seed) for seed in (0, 1))
    yield from _same("in eval, another seed changes", once, again)
    p.backbone.train()
    try:
        once, again = (_seeded(p, seed) for seed in (0, 0))
    finally:
        p.backbone.eval()
    yield from _same("in training, the same seed does not give the same", once, again)
    for path, logits in once.items():
        yield from _finite(f"in training, {path}", logits, p.dtype)


def _seeded(p: Probe, seed: int) -> dict[str, Tensor]:
    """Logits on both paths, after seeding torch's generator for this call alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"forward": p.forward(p.ragged), "decode": p.split(p.ragged, 3, 4)}


def _same(what: str, once: dict[str, Tensor], again: dict[str, Tensor]) -> Complaints:
    for path, logits in once.items():
        if not torch.equal(logits, again[path]):
            yield f"{what} {path}, by {difference(logits, again[path]):.2e}"


@rule
def trace(p: Probe) -> Complaints:
    """Nothing depends on values on the host: both paths run on fake tensors, which have none."""
    assert p.ragged.mask is not None
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:  # slow: a few columns show all there is to see
        fake = dataclasses.replace(p, target=mode.from_tensor(p.target[:, :2]))
        source = Tokens(mode.from_tensor(p.ragged.ids[:, -3:]), mode.from_tensor(p.ragged.mask[:, -3:]))
        for path, logits in (("forward", fake.forward(source)), ("decode", fake.split(source, 1, 1))):
            if logits.shape != (p.rows, 2, p.backbone.readout.out_features):
                yield f"{path}: shape {tuple(logits.shape)}"
