"""Every rule of the contract is broken once, in a real architecture, and must be caught under its own name.

A mutant is an architecture's file with a few words replaced, loaded as a user's own file. It is caught by what a rule
measures: a rule that could not run to its end has caught nothing, unless the mutant says that this is how it shows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

import archs
from archs.verify import RULES, ContractError, verify_contract


@dataclass(frozen=True)
class Mutant:
    """`edits`: pairs (as it is, as it is broken), each of which must be found.

    broken: rules that must say so, with a measurement. raised: the rules, no more and no fewer, that cannot run on it.
    """

    arch: str
    edits: tuple[tuple[str, str], ...]
    broken: set[str] = field(default_factory=set)
    raised: set[str] = field(default_factory=set)
    config: dict[str, Any] = field(default_factory=dict)


SMALL = {
    "mamba": {"d_model": 8, "d_state": 4},
    "gqa": {"d_model": 16},
    "transformer": {"d_model": 16},
    "seq2seq": {"d_model": 8, "attention": "luong"},
}

LAST_FIELD = "    start: Tensor | None = None\n"
FORGETFUL_SELECT = """
    def select(self, rows):
        picked = super().select(rows)
        return dataclasses.replace(picked, memory=self.memory[:1].expand_as(picked.memory).clone())
"""
NBYTES_BY_FORMULA = """
    @property
    def nbytes(self):
        return self.hidden[0].nbytes
"""

MUTANTS = {
    "mamba: dt is not 0 at pads": Mutant(
        "mamba",
        (('dt = dt.masked_fill(~mask[..., None], float("-inf"))', "pass"),),
        {"padding", "rows"},
    ),
    "mamba: the convolution reads pads": Mutant(
        "mamba",
        (("x = x.masked_fill(~mask[:, None], 0.0)", "pass"),),
        {"padding", "rows", "reach"},
    ),
    "mamba: the last state carries no gradient": Mutant(
        "mamba",
        (("hidden.to(state.hidden.dtype)", "hidden.detach().to(state.hidden.dtype)"),),
        {"training"},
    ),
    "mamba: no gradient through any state": Mutant(
        "mamba",
        (
            ("hidden.to(state.hidden.dtype)", "hidden.detach().to(state.hidden.dtype)"),
            ("LayerState(columns, hidden", "LayerState(columns.detach(), hidden"),
        ),
        {"training", "reach"},
    ),
    "mamba: the kept columns are a view of the whole input": Mutant(
        "mamba",
        (("LayerState(columns, hidden", "LayerState(F.pad(columns, (9, 0))[..., 9:], hidden"),),
        {"nbytes"},
    ),
    "mamba: another computation without a mask": Mutant(
        "mamba",
        (
            (
                "        dt, B, C = self.selection(x.mT)\n",
                "        dt, B, C = self.selection(x.mT if mask is None else 2 * x.mT)\n",
            ),
        ),
        {"mask", "rows"},
    ),
    "mamba: a consumed state goes on": Mutant(
        "mamba",
        (("state.lease is not None and state.lease.take()", "state.lease is not None"),),
        {"consumed"},
    ),
    "mamba: every state is written in place": Mutant(
        "mamba",
        (("state.lease is not None and state.lease.take()", "not torch.is_grad_enabled()"),),
        {"value", "consumed"},
    ),
    "mamba: one token at a time, another gate": Mutant(
        "mamba",
        (("x, gate = self.project_in(x).chunk(2, -1)", "gate, x = self.project_in(x).chunk(2, -1)"),),
        {"chunks", "room"},
    ),
    "mamba: an empty prefix is not a number": Mutant(
        "mamba",
        (("x = self.embedding_dropout(self.embedding(ids))", "x = self.embedding(ids) / (ids[:, :, None] != 1)"),),
        {"bos"},
    ),
    "mamba: forward is not the readout of the features": Mutant(
        "mamba",
        (
            (
                "    def features(self,",
                "    def forward(self, source, target):\n        return super().forward(source, target) + 1\n\n"
                "    def features(self,",
            ),
        ),
        {"shapes", "fused", "chunks"},
    ),
    "gqa: the source's mask is forgotten in encode": Mutant(
        "gqa",
        (("mask = causal_mask(columns, columns, source.start,", "mask = causal_mask(columns, columns, None,"),),
        {"fused", "padding", "rows"},
        config={"n_layers": 2},
    ),
    "gqa: the source's mask is forgotten everywhere": Mutant(
        "gqa",
        (
            ("mask = causal_mask(columns, columns, source.start,", "mask = causal_mask(columns, columns, None,"),
            ("return Cache(tuple(layers), length, source.start,", "return Cache(tuple(layers), length, None,"),
            ("mask = causal_mask(ids.shape[1], ids.shape[1], source.start,", "mask = causal_mask(16, 16, None,"),
        ),
        {"padding", "rows", "reach"},
    ),
    "gqa: the fused path is off by one column": Mutant(
        "gqa",
        (("return features[:, source.ids.shape[1] :]", "return features[:, source.ids.shape[1] - 1 : -1]"),),
        {"fused", "chunks", "causal"},
    ),
    "gqa: the state is written in place": Mutant(
        "gqa",
        (("slot = state.claim(count)", "slot = state.claim(count)\n        state.layers[0][0].mul_(1.5)"),),
        {"value", "select"},
        raised={"training", "reach"},
    ),
    "gqa: the position lags by one after a call": Mutant(
        "gqa",
        (("return features, slot.close(layers, count)", "return features, slot.close(layers, count - 1)"),),
        {"chunks"},
    ),
    "gqa: the leaves do not lead with the batch": Mutant(
        "gqa",
        (("length = torch.full((rows,), columns", "length = torch.full((1,), columns"),),
        {"batch"},
        raised={"select", "consumed"},
    ),
    "gqa: room changes a logit": Mutant(
        "gqa",
        (("reserve(keys, room)", "reserve(keys * (1 + (room > 0)), room)"),),
        {"room", "consumed"},
    ),
    "gqa: an upper-left causal mask in a chunk": Mutant(
        "gqa",
        (("state.positions(count), slot.mask, slot)", "state.positions(count), None, slot)"),),
        {"fused", "chunks"},
    ),
    "gqa: a consumed state goes on": Mutant(
        "gqa",
        (
            ("source.start, Lease(columns))", "source.start, Endless(columns))"),
            (
                "class RotaryPositions",
                "class Endless(Lease):\n    def check(self):\n        pass\n\n\nclass RotaryPositions",
            ),
        ),
        {"consumed"},
    ),
    "gqa: the values of a mask are looked at": Mutant(
        "gqa",
        (
            (
                "        room = usable_room(room)\n",
                "        assert source.mask is None or source.mask.any()\n        room = usable_room(room)\n",
            ),
        ),
        raised={"trace"},
    ),
    "gqa: the first source token is not seen": Mutant(
        "gqa",
        (("x = self.embedding_dropout(self.embedding(ids))", "x = self.embedding(ids) * (positions > 0)[..., None]"),),
        {"ends", "reach"},
    ),
    "gqa: unnormalised alignments": Mutant(
        "gqa",
        (
            (
                "return attention_weights(query, keys, mask).mean(1)",
                "return attention_weights(query, keys, mask).sum(1)",
            ),
        ),
        {"alignments"},
    ),
    "transformer: positions from arange": Mutant(
        "transformer",
        (
            (
                "self._place((self.source_embedding or self.embedding)(source.ids), source.positions)",
                "self._place((self.source_embedding or self.embedding)(source.ids), Tokens(source.ids).positions)",
            ),
        ),
        {"padding", "rows"},
    ),
    "transformer: the decoder sees the future": Mutant(
        "transformer",
        (
            (
                "return self._join(attend(query, keys, values, mask, self._drop()))",
                "return self.full(query, keys, values, None, )",
            ),
        ),
        {"causal", "chunks"},
    ),
    "transformer: alignments on pads": Mutant(
        "transformer",
        (("return attention_weights(query, memory[0], mask)", "return attention_weights(query, memory[0], None)"),),
        {"alignments"},
    ),
    "transformer: the target is not read": Mutant(
        "transformer",
        (
            (
                "x = self._place(self.embedding(target), state.target.positions(count))",
                "x = self._place(self.embedding(target * 0), state.target.positions(count))",
            ),
        ),
        {"causal"},
    ),
    "seq2seq: dropout stays on in decode": Mutant(
        "seq2seq",
        (("self.dropout(seen)", "F.dropout(seen)"),),
        {"dropout"},
    ),
    "seq2seq: dropout from a generator of its own": Mutant(
        "seq2seq",
        (
            ("self.dropout(seen)", "seen * (torch.rand(seen.shape, generator=OWN) > 0.1 if self.training else 1)"),
            ("class Bridge", "OWN = torch.Generator()\n\n\nclass Bridge"),
        ),
        {"dropout"},
    ),
    "seq2seq: the keys are kept on the module": Mutant(
        "seq2seq",
        (
            (
                "return Seq2SeqState(hidden, self._keys(x), x, source.start)",
                "self.kept = self._keys(x)\n        return Seq2SeqState(hidden, self.kept, x, source.start)",
            ),
            ("(query[:, None], state.keys[:, None]", "(query[:, None], self.kept[:, None]"),
        ),
        {"separate"},
        raised={"select"},
    ),
    "seq2seq: select forgets a leaf": Mutant(
        "seq2seq",
        ((LAST_FIELD, LAST_FIELD + FORGETFUL_SELECT),),
        {"select"},
    ),
    "seq2seq: the recurrent state leads with its layers": Mutant(
        "seq2seq",
        (
            ("torch.stack(layers, 1)", "torch.stack(layers)"),
            ("part.transpose(0, 1).to(", "part.to("),
            ("tuple(part.transpose(0, 1) for part in after)", "after"),
        ),
        {"batch"},
        raised={"select", "consumed"},
    ),
    "seq2seq: nbytes is a formula": Mutant(
        "seq2seq",
        ((LAST_FIELD, LAST_FIELD + NBYTES_BY_FORMULA),),
        {"nbytes"},
    ),
    "seq2seq: the backward direction starts at pads": Mutant(
        "seq2seq",
        (("back[torch.arange(len(back), device=back.device), start]", "back[:, 0]"),),
        {"padding", "rows"},
    ),
}


def build(mutant: Mutant, folder: Path, edits: tuple[tuple[str, str], ...]) -> archs.Backbone:
    """The mutant's architecture with these edits, from a file of its own in `folder`."""
    source = Path(archs.load(mutant.arch).__file__).read_text()
    for before, after in edits:
        assert before in source, f"archs/{mutant.arch}.py changed: it no longer holds {before!r}"
        source = source.replace(before, after)
    path = folder / f"{mutant.arch}.py"
    path.write_text(source)
    torch.manual_seed(0)
    return archs.build(str(path), 16, **{"n_layers": 1, **SMALL[mutant.arch], **mutant.config})


@pytest.fixture(scope="module")
def verify_unbroken(tmp_path_factory) -> Callable[[Mutant], None]:
    """Passes if the mutant's architecture, made in the same way but without an edit, meets the contract here."""
    passed = set()

    def verify(mutant: Mutant) -> None:
        key = (mutant.arch, *sorted(mutant.config.items()))
        if key not in passed:
            verify_contract(build(mutant, tmp_path_factory.mktemp(mutant.arch), edits=()))
            passed.add(key)

    return verify


def raised(found: list[str]) -> bool:
    return any(complaint.startswith("raised ") for complaint in found)


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, tmp_path, verify_unbroken):
    mutant = MUTANTS[name]
    verify_unbroken(mutant)
    with pytest.raises(ContractError) as caught:
        verify_contract(build(mutant, tmp_path, mutant.edits))
    broken = caught.value.broken
    assert mutant.raised == {rule for rule, found in broken.items() if raised(found)}
    assert mutant.broken <= {rule for rule, found in broken.items() if not raised(found)}


def test_every_rule_has_a_mutant():
    assert set().union(*(mutant.broken for mutant in MUTANTS.values())) == set(RULES) - {"trace"}
    assert any(mutant.raised == {"trace"} for mutant in MUTANTS.values()), "fake tensors say no by raising"


def test_all_broken_rules_are_listed_with_their_numbers(tmp_path):
    mutant = MUTANTS["gqa: the fused path is off by one column"]
    with pytest.raises(ContractError, match=r"breaks \d+ rules of the contract in torch\.float64") as caught:
        verify_contract(build(mutant, tmp_path, mutant.edits))
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == sum(map(len, caught.value.broken.values()))
    assert any(line.startswith("  fused: padded source: differs by ") and "allowed 1.0e-10" in line for line in lines)
