"""Properties over drawn batches: any padding, any chunks, any rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import ragged
from variants import ONE_OF_EACH, VOCABULARY, build

from archs import Tokens

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=4)
chunks = st.lists(st.integers(1, 4), min_size=1, max_size=4)
seeds = st.integers(0, 2**16)


@pytest.fixture(scope="module", params=ONE_OF_EACH)
def backbone(request):
    return build(*ONE_OF_EACH[request.param], torch.float64)


def target_of(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, columns), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def decoded(backbone, state, target, chunks):
    parts = []
    for chunk in target.split(chunks, 1):
        logits, state = backbone.decode(state, chunk)
        parts.append(logits)
    return torch.cat(parts, 1)


@given(lengths=lengths, chunks=chunks, seed=seeds)
def test_a_row_decoded_alone_in_chunks_is_the_row_in_the_batch(backbone, lengths, chunks, seed):
    source, target = ragged(*lengths, vocabulary=VOCABULARY, seed=seed), target_of(len(lengths), sum(chunks), seed)
    with torch.no_grad():
        together = backbone(source, target)
    for row, length in enumerate(lengths):
        state = backbone.encode(Tokens(source.ids[row : row + 1, -length:]))
        alone = decoded(backbone, state, target[row : row + 1], chunks)
        torch.testing.assert_close(alone[0], together[row], atol=1e-10, rtol=0)


@given(lengths=lengths, chunks=chunks, room=st.integers(0, 20), seed=seeds)
def test_room_and_chunks_change_nothing(backbone, lengths, chunks, room, seed):
    source, target = ragged(*lengths, vocabulary=VOCABULARY, seed=seed), target_of(len(lengths), sum(chunks), seed)
    with torch.inference_mode():
        got = decoded(backbone, backbone.encode(source, room), target, chunks)
        torch.testing.assert_close(got, backbone(source, target), atol=1e-10, rtol=0)


@given(lengths=lengths, room=st.integers(0, 8), seed=seeds, data=st.data())
def test_selected_rows_decode_as_themselves(backbone, lengths, room, seed, data):
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(lengths) - 1), min_size=1, max_size=6)))
    source, target = ragged(*lengths, vocabulary=VOCABULARY, seed=seed), target_of(len(lengths), 5, seed)
    with torch.inference_mode():
        _, state = backbone.decode(backbone.encode(source, room), target[:, :2])
        got = decoded(backbone, state.select(rows), target[rows, 2:], [1, 2])
        torch.testing.assert_close(got, backbone(source, target)[rows, 2:], atol=1e-10, rtol=0)


@given(lengths=lengths, seed=seeds)
def test_alignments_are_weights_over_real_tokens(backbone, lengths, seed):
    source, target = ragged(*lengths, vocabulary=VOCABULARY, seed=seed), target_of(len(lengths), 3, seed)
    with torch.no_grad():
        weights = backbone.alignments(source, target)
    if weights is None:
        return
    assert weights.shape == (len(lengths), 3, max(lengths))
    assert (weights >= 0).all()
    assert (weights.sum(-1) <= 1 + 1e-12).all()
    for row, length in enumerate(lengths):
        assert not weights[row, :, : max(lengths) - length].any()
