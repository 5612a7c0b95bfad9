"""The rules of the contract on the state: a value, batch-leading, differentiable, with room, of honest size.

The functions marked `@rule` are the documentation of the contract: a name, a sentence, and how it is measured.
`archs.verify.verify_contract` runs them all.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from archs.contract import State, StateConsumed, Tokens
from archs.probe import COLUMNS, Complaints, Probe, Rule, gradients, register, source_gradients

RULES: dict[str, Rule] = {}
"""Name -> check; the first line of a check's docstring says the rule."""

rule = partial(register, RULES)


@rule
def value(p: Probe) -> Complaints:
    """A state is a value: neither it nor the inputs change by a call."""
    for name, source in p.sources.items():
        for (inference, room), count in itertools.product(((False, 0), (False, COLUMNS), (True, 0)), (1, 3)):
            with torch.inference_mode(inference):
                changed = _changed_by_decoding(p, source, room, count)
            if changed:
                yield f"{name}, inference_mode {inference}, room {room}: decoding {count} changed {', '.join(changed)}"


def _changed_by_decoding(p: Probe, source: Tokens, room: int, count: int) -> list[str]:
    encoded = p.backbone.encode(source, room)
    kept = {"source ids": source.ids, "target": p.target}
    kept |= {f"leaf {index} of encode": leaf for index, leaf in enumerate(encoded.leaves())}
    before = {name: leaf.clone() for name, leaf in kept.items()}
    _, decoded = p.backbone.decode(encoded, p.target[:, :count])
    after = {f"leaf {index} of decode": leaf for index, leaf in enumerate(decoded.leaves())}
    before |= {name: leaf.clone() for name, leaf in after.items()}
    p.backbone.decode(decoded, p.target[:, count : 2 * count])
    return [name for name, leaf in (kept | after).items() if not torch.equal(leaf, before[name])]


@rule
def separate(p: Probe) -> Complaints:
    """No state is kept on the module: two batches decoded in turns are as each alone."""
    other = Tokens(p.other(p.full.ids))
    one, two = p.backbone.encode(p.full), p.backbone.encode(other)
    for chunk in p.target.split((3, 4), 1):
        first, one = p.backbone.decode(one, chunk)
        second, two = p.backbone.decode(two, chunk)
    yield from p.differ("the first of two batches", first, p.forward(p.full)[:, 3:])
    yield from p.differ("the second of two batches", second, p.forward(other)[:, 3:])


@rule
def select(p: Probe) -> Complaints:
    """state.select(rows) is the state of these rows, repeated or dropped, and leaves the original whole."""
    for name, source in p.sources.items():
        expected = p.expected[name][:, 3:]
        for picked in (torch.tensor([2, 0, 0, 1]), torch.tensor([True, False, True])):
            index = picked.to(p.target.device)
            _, state = p.backbone.decode(p.backbone.encode(source), p.target[:, :3])
            got, _ = p.backbone.decode(state.select(index), p.target[index, 3:])
            yield from p.differ(f"{name}, rows {picked.tolist()}", got, expected[index])
            rest, _ = p.backbone.decode(state, p.target[:, 3:])
            yield from p.differ(f"{name}, the original", rest, expected)


@rule
def batch(p: Probe) -> Complaints:
    """A state is a State, and each of its tensor leaves leads with the batch axis."""
    for (name, source), count in itertools.product(p.sources.items(), (p.rows, p.rows - 1)):
        mask = None if source.mask is None else source.mask[:count]
        encoded = p.backbone.encode(Tokens(source.ids[:count], mask))
        if not isinstance(encoded, State):
            yield f"{type(encoded).__name__} is not derived from State"
            return
        for when, state in (("encode", encoded), ("decode", p.backbone.decode(encoded, p.target[:count])[1])):
            shapes = [tuple(leaf.shape) for leaf in state.leaves()]
            if not shapes or any(shape[:1] != (count,) for shape in shapes):
                yield f"{name}: leaves after {when} of {count} rows: {shapes}"


@rule
def training(p: Probe) -> Complaints:
    """Every parameter's gradient through the state is that of forward."""
    for name, source in p.sources.items():
        expected = gradients(p, partial(p.forward, source))
        scale = torch.cat([gradient.flatten() for gradient in expected.values()])
        for lengths in ((COLUMNS,), (3, 4)):
            for key, got in gradients(p, partial(p.split, source, *lengths)).items():
                yield from p.differ(f"{name} in chunks {lengths}, {key}", got, expected[key], scale)


@rule
def reach(p: Probe) -> Complaints:
    """The gradient reaches every real source token and no pad, measured where the embedding returns."""
    for name, source in p.sources.items():
        for path, run in (("forward", partial(p.forward, source)), ("decode", partial(p.split, source, 3, 4))):
            sizes = source_gradients(p, source, run)
            if not sizes:
                yield f"{name}, {path}: no nn.Embedding read the source, so that nothing can be measured"
            for size in sizes:
                yield from _reached(p, f"{name}, {path}", size, source)


def _reached(p: Probe, what: str, size: Tensor, source: Tokens) -> Complaints:
    real = torch.ones_like(source.ids, dtype=torch.bool) if source.mask is None else source.mask
    if missed := (real & (size == 0)).nonzero().tolist():
        yield f"{what}: no gradient at the real tokens (row, column) {missed}"
    if not (worst := float((size * ~real).max())) <= p.allowed(size):
        yield f"{what}: gradient {worst:.2e} at a pad, allowed {p.allowed(size):.1e}"


@rule
def room(p: Probe) -> Complaints:
    """Preallocated room changes nothing, within it and past it, and is ignored outside inference_mode."""
    for name, source in p.sources.items():
        expected = p.expected[name]
        for size, lengths in ((COLUMNS, (1,) * COLUMNS), (COLUMNS, (3, 4)), (3, (2, 2, 3)), (3, (5, 2))):
            with torch.inference_mode():
                got = p.split(source, *lengths, room=size)
            yield from p.differ(f"{name}, room {size}, chunks {lengths}", got, expected)
        yield from p.differ(f"{name}, not in inference_mode", p.split(source, 3, 4, room=COLUMNS), expected)
        with_room, without = p.backbone.encode(source, COLUMNS).nbytes, p.backbone.encode(source).nbytes
        if with_room != without:
            yield f"{name}, not in inference_mode: {with_room} bytes with room, {without} without"


@rule
def consumed(p: Probe) -> Complaints:
    """A state with room belongs to its next call: using it again raises or harms nothing; select branches before."""
    everyone = torch.arange(p.rows, device=p.target.device)
    other = replace(p, target=p.other(p.target))
    for (name, source), count in itertools.product(p.sources.items(), (1, 3)):
        with torch.inference_mode():
            state = p.backbone.encode(source, COLUMNS)
            branch = state.select(everyone)
            _, after = p.backbone.decode(state, p.target[:, :count])
            yield from _reused(other, f"{name}, decode again after {count}", source, state)
            yield from _reused(other, f"{name}, select after {count}", source, state, everyone)
            rest, _ = p.backbone.decode(after, p.target[:, count:])
            yield from p.differ(f"{name}, the state after the one used again", rest, p.expected[name][:, count:])
            yield from p.differ(f"{name}, branched before", p.backbone.decode(branch, p.target)[0], p.expected[name])


def _reused(p: Probe, what: str, source: Tokens, state: State, select: Tensor | None = None) -> Complaints:
    try:
        logits, _ = p.backbone.decode(state if select is None else state.select(select), p.target)
    except StateConsumed:
        return
    yield from p.differ(what, logits, p.forward(source))


@rule
def nbytes(p: Probe) -> Complaints:
    """nbytes counts each storage once, and no leaf keeps more alive than it shows."""
    for name, source in p.sources.items():
        encoded = p.backbone.encode(source)
        for when, state in (("encode", encoded), ("decode", p.backbone.decode(encoded, p.target)[1])):
            storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in state.leaves()}
            if state.nbytes != sum(storages.values()):
                yield f"{name}, {when}: nbytes {state.nbytes}, but the storages hold {sum(storages.values())}"
            if state.nbytes > (shown := sum(leaf.nbytes for leaf in state.leaves())):
                yield f"{name}, {when}: {state.nbytes} bytes are held for leaves of {shown}"
