"""The registry of tasks, and what every task promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import tasks
from experiments.errors import UserError
from experiments.tasks.contract import FIRST, UNSCORED, choose

OWN = """
from dataclasses import dataclass
from experiments.tasks.contract import FIRST, Examples, Task, shifted

@dataclass(frozen=True, kw_only=True)
class Config(Task):
    inputs = "shifted"
    train_lengths: tuple[int, int] = (2, 4)
    test_lengths: tuple[int, ...] = (4,)
    symbols: int = 9

    @property
    def vocab_size(self):
        return FIRST + self.symbols

    def sample(self, rng, n, length):
        source = rng.integers(FIRST, self.vocab_size, (n, length))
        return shifted(source, source.max(1, keepdims=True))
"""
few = settings(max_examples=25, deadline=None)


def write(folder, text, name="largest.py"):
    path = folder / name
    path.write_text(text)
    return str(path)


def test_every_task_is_listed():
    assert set(tasks.names()) == {"copy", "reverse", "selective_copy", "recall", "induction", "text"}


@few
@given(st.sampled_from(tasks.names()), st.integers(0, 2**32), st.integers(1, 40), st.data())
def test_examples_hold_ids_of_the_vocabulary(name, seed, n, choice):
    task = tasks.make(name)
    length = choice.draw(st.sampled_from([*task.train_lengths, *task.test_lengths]))
    source, target, labels = task.sample(np.random.default_rng(seed), n, length)
    assert source.dtype == target.dtype == labels.dtype == np.int64
    assert len(source) == len(target) == len(labels) == n
    assert source.shape[1] >= 1
    assert target.shape == labels.shape
    for ids in (source, target, labels[labels != UNSCORED]):
        assert ids.min() >= 1
        assert ids.max() < task.vocab_size
    assert (labels != UNSCORED).any(axis=1).all()


@few
@given(st.sampled_from(tasks.names()), st.integers(0, 2**32), st.data())
def test_the_oracle_scores_one(name, seed, choice):
    task = tasks.make(name)
    length = choice.draw(st.sampled_from([*task.train_lengths, *task.test_lengths]))
    source, target, labels = task.sample(np.random.default_rng(seed), 8, length)
    answer = task.oracle(source, target)
    if answer is None:
        assert name == "text"
    else:
        assert np.array_equal(answer[labels != UNSCORED], labels[labels != UNSCORED])


@pytest.mark.parametrize("name", [name for name in tasks.names() if tasks.load(name).Config.inputs == "shifted"])
def test_shifted_inputs_are_the_labels_one_later(name):
    task = tasks.make(name)
    _, target, labels = task.sample(np.random.default_rng(0), 8, task.test_lengths[0])
    assert np.array_equal(target[:, 1:], labels[:, :-1])
    assert task.generates == ("exact_match" in task.metrics)


@few
@given(st.integers(1, 20), st.data())
def test_choose_draws_distinct_numbers(population, choice):
    k = choice.draw(st.integers(1, population))
    chosen = choose(np.random.default_rng(0), 50, population, k)
    assert chosen.shape == (50, k)
    assert all(len(set(row)) == k and set(row) <= set(range(population)) for row in chosen.tolist())


def test_choose_is_uniform_over_ordered_choices_and_follows_weights():
    rng = np.random.default_rng(0)
    pairs = choose(rng, 60_000, 3, 2) @ [3, 1]
    assert np.allclose(np.bincount(pairs, minlength=9)[[1, 2, 3, 5, 6, 7]] / 60_000, 1 / 6, atol=0.01)
    first, second = choose(rng, 60_000, 3, 2, np.array([0.5, 0.3, 0.2])).T
    assert np.allclose(np.bincount(first) / 60_000, [0.5, 0.3, 0.2], atol=0.01)
    assert np.allclose(np.bincount(second[first == 0], minlength=3) / (first == 0).sum(), [0, 0.6, 0.4], atol=0.01)


def test_lists_and_text_become_what_the_field_holds():
    task = tasks.make("reverse", train_lengths=[3, 5], test_lengths=[5, 7, 9], symbols="4")
    assert (task.train_lengths, task.test_lengths, task.vocab_size) == ((3, 5), (5, 7, 9), FIRST + 4)
    assert task.longest == 9


@pytest.mark.parametrize(
    ("spec", "config", "said"),
    [
        ("revers", {}, "did you mean 'reverse'"),
        ("nothing_like_it", {}, "expected one of copy"),
        ("reverse", {"symbol": 4}, "did you mean 'symbols'"),
        ("reverse", {"symbols": "many"}, "symbols"),
        ("reverse", {"symbols": 1}, "at least 2"),
        ("reverse", {"train_lengths": [4]}, r"train_lengths must be .* got \[4\]"),
        ("reverse", {"train_lengths": [9, 4]}, "shortest"),
        ("reverse", {"train_lengths": [0, 4]}, "shortest"),
        ("reverse", {"test_lengths": []}, "at least one length"),
        ("recall", {"keys": 8}, "vocabulary is too small"),
        ("recall", {"values": 8}, "vocabulary is too small"),
        ("recall", {"slots": 0}, "at least 1"),
        ("missing.py", {}, "no task file"),
    ],
)
def test_a_users_mistake_gets_one_sentence(spec, config, said):
    with pytest.raises(UserError, match=said) as caught:
        tasks.make(spec, **config)
    assert "\n" not in str(caught.value)


def test_a_users_own_file_is_a_task(tmp_path):
    path = write(tmp_path, OWN)
    task = tasks.make(path, symbols=5)
    assert (task.name, task.vocab_size) == ("largest", FIRST + 5)
    examples = task.sample(np.random.default_rng(0), 3, 4)
    assert np.array_equal(examples.labels[:, 0], examples.source.max(1))
    assert tasks.load(path) is tasks.load(path)


def test_two_files_of_one_name_are_two_tasks(tmp_path):
    for folder, symbols in (("a", 5), ("b", 7)):
        (tmp_path / folder).mkdir()
        path = write(tmp_path / folder, OWN.replace("= 9", f"= {symbols}"))
        assert tasks.make(path).vocab_size == FIRST + symbols


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "expected `class Config"),
        ("def broken(:", "does not import: SyntaxError"),
        (OWN.replace("def sample", "def other"), "does not define sample"),
        (OWN.replace('inputs = "shifted"', ""), "does not define inputs"),
    ],
)
def test_a_file_that_is_no_task_says_why(tmp_path, text, said):
    with pytest.raises(UserError, match=said):
        tasks.make(write(tmp_path, text, "wrong.py"))
