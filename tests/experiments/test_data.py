"""experiments.data: examples that depend on nothing but (task, seed, split, index), and batches of them."""

import json
import subprocess
import sys
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import data, tasks
from experiments.errors import UserError
from experiments.tasks.contract import BOS, PAD, UNSCORED, Examples, Task

SYNTHETIC = [name for name in tasks.names() if name != "text"]
SPLITS = list(data.SHARES)
few = settings(max_examples=15, deadline=None)


@dataclass(frozen=True, kw_only=True)
class Tiny(Task):
    """Two examples in all."""

    inputs = "given"
    train_lengths: tuple[int, int] = (1, 1)
    test_lengths: tuple[int, ...] = (1,)

    @property
    def vocab_size(self) -> int:
        return 5

    def sample(self, rng: np.random.Generator, n: int, length: int) -> Examples:
        source = rng.integers(3, 5, (n, 1))
        return Examples(source, source, source)


@dataclass(frozen=True, kw_only=True)
class Shared(Tiny):
    shared_splits = True


def tokens(examples: Examples) -> list[tuple[int, ...]]:
    return [tuple(row) for row in np.hstack([examples.source, examples.target]).tolist()]


@pytest.mark.parametrize("name", tasks.names())
def test_a_block_is_a_function_of_its_coordinates(name):
    task = tasks.make(name)
    first = data.block(task, 1, "train", 2)
    data.block.cache_clear()
    again = data.block(tasks.make(name), 1, "train", 2)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    others = [data.block(task, 2, "train", 2), data.block(task, 1, "train", 3), data.block(task, 1, "test", 2)]
    assert all(tokens(first) != tokens(other) for other in others)


@pytest.mark.parametrize("name", tasks.names())
def test_blocks_hold_256_rows_of_one_trained_length(name):
    task = tasks.make(name)
    for index in range(4):
        examples = data.block(task, 0, "train", index)
        assert {len(array) for array in examples} == {data.BLOCK}
        assert examples.target.shape == examples.labels.shape
        shapes = {task.sample(np.random.default_rng(0), 1, n).source.shape[1] for n in _trained(task)}
        assert examples.source.shape[1] in shapes


def _trained(task):
    return range(task.train_lengths[0], task.train_lengths[1] + 1)


def test_training_lengths_cover_their_inclusive_range():
    task = tasks.make("reverse", train_lengths=[4, 6])
    lengths = [data.block(task, 0, "train", index).source.shape[1] for index in range(40)]
    assert set(lengths) == {4, 5, 6}


def test_what_is_scored_does_not_change_what_is_trained_on():
    short, long = (tasks.make("reverse", test_lengths=lengths) for lengths in ([8], [16, 64]))
    assert tokens(data.block(short, 0, "train", 0)) == tokens(data.block(long, 0, "train", 0))
    assert data.fingerprint(short, 0) != data.fingerprint(long, 0)


@few
@given(st.sampled_from(tasks.names()), st.sampled_from(SPLITS), st.integers(1, 300), st.integers(0, 3))
def test_batches_are_slices_of_one_stream_whatever_their_size(name, split, size, index):
    task = tasks.make(name)
    length = task.test_lengths[0]
    stop = (index + 1) * size
    blocks = [data.block(task, 0, split, k, length) for k in range(-(-stop // data.BLOCK))]
    everything = [np.concatenate(arrays) for arrays in zip(*blocks, strict=True)]
    made = data.batch(task, 0, split, index, size, length)
    assert made.source.mask is None
    for ours, theirs in zip((made.source.ids, made.target, made.labels), everything, strict=True):
        assert ours.dtype == torch.int64
        assert np.array_equal(ours, theirs[index * size : stop])


@pytest.mark.parametrize("name", SYNTHETIC)
def test_training_batches_are_unpadded_where_their_size_divides_256(name):
    task = tasks.make(name)
    assert all(data.batch(task, 0, "train", index, 64).source.mask is None for index in range(8))


def test_a_batch_that_spans_blocks_is_padded_left_and_right():
    task = tasks.make("reverse", train_lengths=[2, 9])
    size = 200
    lengths = [data.block(task, 0, "train", index).source.shape[1] for index in range(2)]
    assert lengths[0] != lengths[1], "the seed must give two lengths for this test to say anything"
    made = data.batch(task, 0, "train", 1, size)
    expected = torch.tensor([lengths[0]] * 56 + [lengths[1]] * 144)
    assert torch.equal(made.source.mask.sum(1), expected)
    assert torch.equal(made.source.ids != PAD, made.source.mask)
    assert torch.equal((made.labels != UNSCORED).sum(1), expected + 1)
    assert (made.target[:, 0] == BOS).all()


def test_padding_layout():
    def example(source, target, labels):
        return Examples(*(np.array([row]) for row in (source, target, labels)))

    made = data.collate([example([7], [1, 7], [7, 2]), example([5, 6], [1, 6, 5], [6, 5, 2])])
    assert made.source.ids.tolist() == [[PAD, 7], [5, 6]]
    assert made.source.mask.tolist() == [[False, True], [True, True]]
    assert made.target.tolist() == [[1, 7, PAD], [1, 6, 5]]
    assert made.labels.tolist() == [[7, 2, UNSCORED], [6, 5, 2]]


@pytest.mark.parametrize("name", SYNTHETIC)
def test_splits_are_disjoint(name):
    task = tasks.make(name)
    length = task.test_lengths[0]
    seen = [{row for index in range(4) for row in tokens(data.block(task, 0, s, index, length))} for s in SPLITS]
    assert all(rows for rows in seen)
    assert not seen[0] & seen[1]
    assert not seen[0] & seen[2]
    assert not seen[1] & seen[2]


def test_splits_are_disjoint_even_across_seeds_in_a_space_that_is_exhausted():
    task = tasks.make("reverse", symbols=8, train_lengths=[2, 2], test_lengths=[2])
    seen = [{row for seed in range(3) for row in tokens(data.block(task, seed, s, 0))} for s in SPLITS]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 64


@pytest.mark.parametrize("shared", [False, True])
def test_a_sample_that_is_no_examples_is_the_users_mistake(shared, monkeypatch):
    task = tasks.make("reverse")
    monkeypatch.setattr(type(task), "sample", lambda self, rng, n, length: (np.ones((n, 2)), np.ones((n, 2))))
    monkeypatch.setattr(type(task), "shared_splits", shared)
    with pytest.raises(UserError, match=r"task reverse: expected sample\(\) to return Examples\(.*got tuple"):
        data.block(task, 0, "train", 0)


def test_a_space_too_small_to_split_is_the_users_mistake():
    with pytest.raises(UserError, match="too few distinct examples") as caught:
        data.check(Tiny(), 0)
    assert "\n" not in str(caught.value)


def test_shared_splits_are_not_redrawn():
    assert set(tokens(data.block(Shared(), 0, "test", 0))) == {(3, 3), (4, 4)}
    assert "share" in data.describe(Shared())["notes"][0]


def test_blocks_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        data.block(tasks.make("reverse"), 0, "train", 0).source[0, 0] = 0


@pytest.mark.parametrize("name", tasks.names())
def test_fingerprint_tells_seeds_and_settings_apart(name):
    task = tasks.make(name)
    other = tasks.make(name, train_lengths=[task.train_lengths[0], task.train_lengths[1] + 1])
    prints = [data.fingerprint(task, 0), data.fingerprint(task, 1), data.fingerprint(other, 0)]
    assert len(set(prints)) == 3
    assert prints[0] == data.fingerprint(tasks.make(name), 0)


def test_fingerprint_is_the_same_in_another_process():
    program = "from experiments import data, tasks; print(*(data.fingerprint(tasks.make(n), 3) for n in tasks.names()))"
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert there == [data.fingerprint(tasks.make(name), 3) for name in tasks.names()]


@pytest.mark.parametrize("name", tasks.names())
def test_description_is_json(name):
    described = data.describe(tasks.make(name))
    assert json.loads(json.dumps(described)) == described
    assert described["task"] == name
    assert described["oracle"] == (name != "text")


def module(task, step=0, world=1, rank=0, size=64):
    made = data.DataModule(task, seed=5, batch_size=size, val_examples=100, test_examples=64)
    made.trainer = SimpleNamespace(global_step=step, world_size=world, global_rank=rank)
    return made


def test_training_goes_on_from_the_global_step():
    task = tasks.make("reverse")
    batches = list(islice(module(task, step=6).train_dataloader(), 3))
    for index, made in enumerate(batches, start=6):
        assert torch.equal(made.labels, data.batch(task, 5, "train", index, 64).labels)


class Recorder(lightning.LightningModule):
    """Learns nothing much and keeps the labels that it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = []
        self.validated = set()

    def training_step(self, made, _):
        self.seen.append(made.labels)
        return (self.weight - made.target.float().mean()) ** 2

    def validation_step(self, made, _, dataloader_idx=0):
        self.validated.add((dataloader_idx, made.labels.shape[1] - 1))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder, steps, checkpoint=None):
    recorder = Recorder()
    trainer = lightning.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    made = data.DataModule(tasks.make("reverse"), seed=5, batch_size=64, val_examples=64, test_examples=64)
    trainer.fit(recorder, made, ckpt_path=checkpoint)
    trainer.save_checkpoint(folder / "last.ckpt")
    return recorder


@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated:FutureWarning")
def test_lightning_resumes_with_the_next_batch(tmp_path):
    first, second = fit(tmp_path, 3), fit(tmp_path, 7, tmp_path / "last.ckpt")
    seen = first.seen + second.seen
    assert len(seen) == 7
    for index, labels in enumerate(seen):
        assert torch.equal(labels, data.batch(tasks.make("reverse"), 5, "train", index, 64).labels)
    assert first.validated == set(enumerate(tasks.make("reverse").test_lengths))


def test_ranks_share_one_batch():
    task = tasks.make("reverse")
    shares = [next(iter(module(task, step=3, world=2, rank=rank).train_dataloader())) for rank in range(2)]
    whole = data.batch(task, 5, "train", 3, 64)
    assert torch.equal(torch.cat([share.target for share in shares]), whole.target)
    with pytest.raises(UserError, match="multiple of the 3 devices"):
        next(iter(module(task, world=3).train_dataloader()))


def test_evaluation_has_one_loader_per_test_length():
    task = tasks.make("reverse", test_lengths=[8, 4, 128])
    loaders = module(task).val_dataloader()
    assert [next(iter(loader)).source.ids.shape[1] for loader in loaders] == [8, 4, 128]
    assert [len(loader) for loader in loaders] == [1, 1, 2]
    assert [len(made.labels) for made in loaders[2]] == [64, 36]
    seen = torch.cat([made.source.ids for made in loaders[1]])
    assert np.array_equal(seen, data.block(task, 5, "validation", 0, 4).source[:100])
    assert next(iter(module(task).test_dataloader()[0])).labels.shape == (64, 9)
