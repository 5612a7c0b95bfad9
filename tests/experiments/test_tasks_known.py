"""Each task against answers written by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import tasks
from experiments.tasks import induction, recall, selective_copy
from experiments.tasks.contract import BOS, EOS, UNSCORED, shifted

few = settings(max_examples=25, deadline=None)


def rows(*ids):
    return np.array(ids, dtype=np.int64)


@pytest.mark.parametrize(("name", "answer"), [("copy", [5, 3, 9]), ("reverse", [9, 3, 5])])
def test_transductions(name, answer):
    task = tasks.make(name)
    source = rows([5, 3, 9])
    assert task.answer(source).tolist() == [answer]
    assert task.oracle(source, rows([0] * 4)).tolist() == [[*answer, EOS]]
    made = task.sample(np.random.default_rng(0), 4, 5)
    expected = [list(row)[:: -1 if name == "reverse" else 1] for row in made.source]
    assert made.labels.tolist() == [[*row, EOS] for row in expected]
    assert made.target.tolist() == [[BOS, *row] for row in expected]


def test_shifted():
    made = shifted(rows([7, 8]), rows([8, 7, 6]))
    assert made.source.tolist() == [[7, 8]]
    assert made.target.tolist() == [[BOS, 8, 7, 6]]
    assert made.labels.tolist() == [[8, 7, 6, EOS]]


def test_recall_by_hand():
    task = tasks.make("recall", keys=32, values=32)
    key, value = recall.KEY, recall.KEY + 32
    source = rows([key + 4, value + 9, key + 1, value + 2])
    target = rows([key + 1, recall.FILLER, recall.FILLER, recall.FILLER, key + 4, recall.FILLER])
    none = UNSCORED
    assert task.oracle(source, target).tolist() == [[value + 2, none, none, none, value + 9, none]]


@few
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 4), st.booleans())
def test_recall_is_zoologys(seed, pairs, slots, random_filler):
    task = tasks.make("recall", keys=20, values=16, slots=slots, random_filler=random_filler, test_lengths=[12])
    source, target, labels = task.sample(np.random.default_rng(seed), 3, pairs)
    assert source.shape == (3, 2 * pairs)
    assert target.shape == (3, 2 * pairs * slots)
    for pair, asked, answers in zip(source, target, labels, strict=True):
        value_of = dict(zip(pair[::2], pair[1::2], strict=True))
        scored = answers != UNSCORED
        assert sorted(asked[scored]) == sorted(value_of), "each key is asked for once"
        assert [value_of[key] for key in asked[scored]] == answers[scored].tolist()
        assert len(set(value_of.values())) == pairs, "values without replacement"
        assert not scored[1::2].any(), "queries stand first in their slots"
        assert set(value_of) <= set(range(recall.KEY, recall.KEY + 20))
        assert random_filler or set(asked[~scored]) <= {recall.FILLER}


def test_recall_asks_early():
    task = tasks.make("recall", slots=4)
    labels = task.sample(np.random.default_rng(0), 4000, 4).labels
    share = (labels != UNSCORED).mean(0)[::2]
    assert share.sum() == pytest.approx(4)
    assert share[0] > share[3] > share[15]
    one = tasks.make("recall", slots=8).sample(np.random.default_rng(0), 20_000, 1).labels
    expected = np.arange(1, 9) ** -0.99
    assert np.allclose((one != UNSCORED).mean(0)[::2], expected / expected.sum(), atol=0.01)


def test_random_filler_of_recall_covers_the_vocabulary():
    task = tasks.make("recall", random_filler=True)
    _, target, labels = task.sample(np.random.default_rng(0), 500, 8)
    assert set(target[labels == UNSCORED]) == set(range(recall.FILLER, task.vocab_size))


def test_selective_copy_by_hand():
    task = tasks.make("selective_copy", data_tokens=3)
    noise, marker, a, b = selective_copy.NOISE, selective_copy.MARKER, selective_copy.DATA, selective_copy.DATA + 1
    source = rows([noise, b, noise, noise, a, b], [a, a, b, noise, noise, noise])
    assert task.oracle(source, np.full((2, 3), marker)).tolist() == [[b, a, b], [a, a, b]]


@few
@given(st.integers(0, 2**32), st.integers(1, 50), st.integers(1, 10))
def test_selective_copy_scatters_its_data_among_noise(seed, noise, data_tokens):
    task = tasks.make("selective_copy", data_tokens=data_tokens)
    source, target, labels = task.sample(np.random.default_rng(seed), 5, noise)
    assert source.shape == (5, noise + data_tokens)
    assert ((source == selective_copy.NOISE).sum(1) == noise).all()
    assert (target == selective_copy.MARKER).all()
    assert [[token for token in row if token != selective_copy.NOISE] for row in source] == labels.tolist()


def test_selective_copy_uses_every_place():
    source = tasks.make("selective_copy", data_tokens=2).sample(np.random.default_rng(0), 8000, 6).source
    assert np.allclose((source != selective_copy.NOISE).mean(0), 2 / 8, atol=0.03)


def test_induction_by_hand():
    task = tasks.make("induction")
    trigger, a, b = induction.TRIGGER, induction.SYMBOL, induction.SYMBOL + 1
    source = rows([a, trigger, b, a], [trigger, a, b, b], [b, b, trigger, a])
    assert task.oracle(source, np.full((3, 1), trigger)).tolist() == [[b], [a], [a]]


@few
@given(st.integers(0, 2**32), st.integers(2, 60))
def test_induction_has_one_trigger_with_an_answer_behind_it(seed, length):
    source, target, labels = tasks.make("induction").sample(np.random.default_rng(seed), 20, length)
    assert source.shape == (20, length)
    assert ((source == induction.TRIGGER).sum(1) == 1).all()
    assert (target == induction.TRIGGER).all()
    for row, label in zip(source.tolist(), labels[:, 0], strict=True):
        assert row[row.index(induction.TRIGGER) + 1] == label


def test_induction_puts_its_trigger_everywhere_but_last():
    source = tasks.make("induction").sample(np.random.default_rng(0), 8000, 5).source
    share = (source == induction.TRIGGER).mean(0)
    assert np.allclose(share, [0.25, 0.25, 0.25, 0.25, 0], atol=0.03)
