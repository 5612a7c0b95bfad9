"""Decoding token by token under inference_mode with room: in place, without memory of the state's size, consumed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from toys import ragged
from variants import VOCABULARY, build

from archs import Backbone, Tokens, attention
from archs.contract import StateConsumed

T = TypeVar("T")
CONTEXT = 512
IN_PLACE = {
    "mamba": ("mamba", {"d_model": 64, "n_layers": 2, "d_state": 64}),
    "mamba, not selective": ("mamba", {"d_model": 64, "n_layers": 2, "d_state": 64, "selective": False}),
    "gqa": ("gqa", {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2}),
    "gqa with one group": ("gqa", {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 1}),
    "transformer": ("transformer", {"d_model": 32, "n_layers": 2, "n_heads": 4}),
}
SOURCES = {
    "padded": ragged(CONTEXT, CONTEXT - 5, vocabulary=VOCABULARY),
    "not padded": Tokens(ragged(CONTEXT, CONTEXT, vocabulary=VOCABULARY).ids),
}


def allocated(work: Callable[[], T]) -> tuple[list[int], T]:
    """The bytes of everything allocated in the meantime, and the result."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiled:
        result = work()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0], result


def tokens(count: int) -> Iterator[torch.Tensor]:
    return iter(ragged(count, count, vocabulary=VOCABULARY, seed=1).ids.split(1, 1))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", IN_PLACE)
@torch.inference_mode()
def test_no_token_makes_anything_of_the_states_size(name: str, source: str) -> None:
    backbone = build(*IN_PLACE[name])
    state = backbone.encode(SOURCES[source], room=4)
    largest = max(leaf.nbytes for leaf in state.leaves())
    for token in tokens(4):
        sizes, (_, state) = allocated(partial(backbone.decode, state, token))
        assert sizes
        assert max(sizes) < largest


@torch.inference_mode()
def test_a_copy_of_the_state_would_be_seen() -> None:
    backbone = build(*IN_PLACE["gqa"])
    state = backbone.encode(SOURCES["padded"])
    sizes, _ = allocated(partial(backbone.decode, state, next(tokens(1))))
    assert max(sizes) >= max(leaf.nbytes for leaf in state.leaves())


@pytest.mark.parametrize("name", IN_PLACE)
@torch.inference_mode()
def test_the_state_stays_where_it_is(name: str) -> None:
    """So that a step can be captured once and played again."""
    backbone = build(*IN_PLACE[name])
    state = backbone.encode(SOURCES["padded"], room=4)
    addresses = [leaf.data_ptr() for leaf in state.leaves() if leaf.dim() > 2]
    assert addresses
    for token in tokens(4):
        _, state = backbone.decode(state, token)
        assert [leaf.data_ptr() for leaf in state.leaves() if leaf.dim() > 2] == addresses


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("name", IN_PLACE)
@torch.inference_mode()
def test_a_consumed_state_is_refused(name: str, count: int) -> None:
    backbone = build(*IN_PLACE[name])
    state = backbone.encode(SOURCES["padded"], room=4)
    target = torch.full((2, count), 3)
    backbone.decode(state, target)
    with pytest.raises(StateConsumed, match=r"branch with select\(\)"):
        backbone.decode(state, target)
    with pytest.raises(StateConsumed):
        state.select(torch.tensor([0]))


def decoded(backbone: Backbone, room: int) -> torch.Tensor:
    state, logits = backbone.encode(SOURCES["padded"], room), []
    for token in tokens(5):
        part, state = backbone.decode(state, token)
        logits.append(part)
    return torch.cat(logits, 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("state_dtype", ["float32", "model"])
def test_in_place_or_not_the_logits_are_the_same(state_dtype: str, dtype: torch.dtype) -> None:
    backbone = build("mamba", {"d_model": 32, "n_layers": 2, "state_dtype": state_dtype}, dtype)
    with torch.inference_mode():
        in_place, as_value = decoded(backbone, 5), decoded(backbone, 0)
    assert torch.equal(in_place, as_value)
    torch.testing.assert_close(decoded(backbone, 0), as_value)


def test_a_token_with_gradients_is_the_scans() -> None:
    backbone = build("mamba", {"d_model": 32, "n_layers": 2})
    source, target = SOURCES["padded"], ragged(5, 5, vocabulary=VOCABULARY, seed=1).ids
    gradients = []
    for logits in (decoded(backbone, 0), backbone(source, target)):
        gradients.append(torch.autograd.grad(logits.square().mean(), list(backbone.parameters())))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_compiled_as_one_graph() -> None:
    backbone = build("mamba", {"d_model": 32, "n_layers": 1})
    compiled = torch.compile(backbone.decode, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        state = backbone.encode(SOURCES["not padded"])
        (logits, after), (expected, kept) = (run(state, torch.full((2, 1), 3)) for run in (compiled, backbone.decode))
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(list(after.leaves()), list(kept.leaves()))
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("columns", [64, 65, 1000])
def test_one_query_over_columns_in_pieces(columns: int, masked: bool) -> None:
    """As a GPU decodes: the same as in one piece, and what is masked is never seen."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(2, 3, n, 8, generator=generator) for n in (4, columns, columns))
    mask = torch.rand(2, 1, 1, columns, generator=generator) < 0.7 if masked else None
    if mask is not None:
        values = values.masked_fill(~mask.mT, 1e4)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, mask)
    torch.testing.assert_close(attention._in_pieces(query, keys, values, mask), expected)
