"""A decode step as one graph, replayed: without a GPU, by doing again on the same memory what a step did."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from toys import ragged
from variants import NAMED, ONE_OF_EACH, VOCABULARY, build

from archs import Backbone, beam, decoder, greedy, sample
from archs.decoder import Decoder

LENGTHS = (6, 1, 4, 2, 5)
EVERY = ONE_OF_EACH | {f"{name}-whole": named for name, named in NAMED.items()}


@dataclass(frozen=True)
class Call:
    """One operator, and the very tensors that it was given and gave."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def again(self) -> None:
        """As a graph would: on the same memory, with the same numbers, results where they were before."""
        given = {t.untyped_storage().data_ptr() for t in tensors(self.args, self.kwargs)}
        for new, old in zip(tensors(self.operator(*self.args, **self.kwargs)), tensors(self.out), strict=True):
            if old.untyped_storage().data_ptr() not in given:
                old.copy_(new)

    def said(self) -> tuple[Any, ...]:
        """All but the values of tensors."""
        return self.operator, tree_map_only(Tensor, lambda t: (t.shape, t.stride(), t.dtype), (self.args, self.kwargs))


def tensors(*values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


class Recorder(TorchDispatchMode):
    """Notes every operator, and what lay where one writes."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.overwritten: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        for declared, given in zip(operator._schema.arguments, args, strict=False):
            if declared.alias_info is not None and declared.alias_info.is_write:
                self.overwritten.append((given, given.clone()))
        out = operator(*args, **(kwargs or {}))
        self.calls.append(Call(operator, args, kwargs or {}, out))
        return out

    def undo(self) -> None:
        for place, before in reversed(self.overwritten):
            place.copy_(before)


@dataclass
class Machine:
    """A CPU that has graphs."""

    captures: int = 0
    replays: int = 0

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        with Recorder() as recorder:
            work()
        recorder.undo()  # capturing computes nothing

        def replay() -> None:
            self.replays += 1
            for call in recorder.calls:
                call.again()

        return replay


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    found = Machine()
    monkeypatch.setattr(decoder, "capturable", lambda device: True)
    monkeypatch.setattr(decoder, "capture", found.capture)
    return found


@pytest.fixture(params=EVERY)
def backbone(request: pytest.FixtureRequest) -> Backbone[Any]:
    return build(*EVERY[request.param])


def generations(backbone: Backbone[Any]) -> Iterator[Tensor]:
    """Of every kind; rows end early where some id ends them."""
    source = ragged(*LENGTHS, vocabulary=VOCABULARY)
    endless = greedy(backbone, source, 12, eos=None)
    yield endless
    for eos in endless[:, 4:].unique().tolist()[:3]:
        yield greedy(backbone, source, 12, eos)
    yield sample(backbone, source, 12, eos=None, generator=torch.Generator().manual_seed(0))
    yield beam(backbone, source, 9, 3, eos=None)


def test_replayed_generation_is_generation(backbone: Backbone[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a graph repeats must not depend on the step in which it was captured."""
    expected = list(generations(backbone))
    machine = Machine()
    monkeypatch.setattr(decoder, "capturable", lambda device: True)
    monkeypatch.setattr(decoder, "capture", machine.capture)
    for actual, plain in zip(generations(backbone), expected, strict=True):
        assert torch.equal(actual, plain)
    assert machine.replays > machine.captures > 2


@torch.inference_mode()
def steps(backbone: Backbone[Any], count: int) -> list[list[Call]]:
    """The operators of successive steps, the first of which is left out."""
    state = backbone.encode(ragged(*LENGTHS, vocabulary=VOCABULARY), room=count + 1)
    token = torch.full((len(LENGTHS), 1), 3)
    _, state = backbone.decode(state, token)
    done = []
    for _ in range(count):
        with Recorder() as recorder:
            _, state = backbone.decode(state, token)
        done.append(recorder.calls)
    return done


def test_successive_steps_are_the_same_operators(backbone: Backbone[Any]) -> None:
    """With the same numbers: positions come from tensors."""
    first, *others = steps(backbone, 3)
    for other in others:
        assert [call.said() for call in other] == [call.said() for call in first]


WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "equal")


def test_a_step_waits_for_nothing(backbone: Backbone[Any]) -> None:
    """No value is looked at by the host."""
    for call in itertools.chain(*steps(backbone, 1)):
        assert not any(word in str(call.operator) for word in WAITING), call.operator
        assert "device" not in call.kwargs or "copy" not in str(call.operator), call


def test_what_cannot_be_captured_is_said_and_changes_nothing(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], None]) -> Callable[[], None]:
        machine.capture(work)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    backbone, source = build(*ONE_OF_EACH["gqa"]), ragged(*LENGTHS, vocabulary=VOCABULARY)
    with monkeypatch.context() as without:
        without.setattr(decoder, "capturable", lambda device: False)
        expected = greedy(backbone, source, 9, eos=None)
    monkeypatch.setattr(decoder, "capture", refuse)
    with pytest.warns(UserWarning, match="GQA is no CUDA graph, .*: operation not permitted when stream is capturing$"):
        actual = greedy(backbone, source, 9, eos=None)
    assert torch.equal(actual, expected)
    assert machine.captures == 1


def test_a_state_that_grows_is_not_captured(machine: Machine) -> None:
    """As without room: every step has another shape."""
    backbone = build(*ONE_OF_EACH["gqa"])
    with torch.inference_mode():
        steps = Decoder(backbone, backbone.encode(ragged(*LENGTHS, vocabulary=VOCABULARY)))
        for _ in range(5):
            steps.step(torch.full((len(LENGTHS),), 3))
    assert machine.captures == 0


def test_the_state_after_a_graph_knows_its_columns(machine: Machine) -> None:
    """Fewer rows go on from where the graph left off, and past the room that there was."""
    backbone = build(*ONE_OF_EACH["gqa"])
    source, token = ragged(*LENGTHS, vocabulary=VOCABULARY), torch.full((len(LENGTHS),), 3)
    with torch.inference_mode():
        plain, replayed = backbone.encode(source), Decoder(backbone, backbone.encode(source, room=8))
        rows = torch.tensor([3, 0])
        for step in range(12):
            if step == 7:
                plain, token = plain.select(rows), token[rows]
                replayed.select(rows)
            expected, plain = backbone.decode(plain, token[:, None])
            torch.testing.assert_close(replayed.step(token), expected[:, -1])
    assert machine.captures >= 1
