"""The text task and the bytes behind it."""

import hashlib
import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from experiments import data, tasks
from experiments.errors import UserError
from experiments.tasks import corpus
from experiments.tasks.contract import BOS, FIRST

SMALL = {"train_lengths": [4, 8], "test_lengths": [8], "continuation": 6}


def to_bytes(ids):
    return (ids - FIRST).astype(np.uint8).tobytes()


@pytest.fixture
def numbered(tmp_path):
    """A file whose every window of four aligned bytes names its own place."""
    path = tmp_path / "numbered.bin"
    path.write_bytes(b"".join(b"%04d" % number for number in range(1000)))
    return path


def test_prefix_and_continuation_are_the_files_bytes(numbered):
    task = tasks.make("text", path=str(numbered), **SMALL)
    content = numbered.read_bytes()
    source, target, labels = task.sample(np.random.default_rng(0), 50, 8)
    for prefix, inputs, continuation in zip(source, target, labels, strict=True):
        assert to_bytes(np.concatenate([prefix, continuation])) in content
        assert inputs[0] == BOS
        assert np.array_equal(inputs[1:], continuation[:-1])
    assert (source.shape, labels.shape) == ((50, 8), (50, 6))


def test_every_byte_value_survives(tmp_path):
    path = tmp_path / "all.bin"
    path.write_bytes(bytes(range(256)) * 20)
    task = tasks.make("text", path=str(path), **SMALL)
    labels = task.sample(np.random.default_rng(0), 2000, 4).labels
    assert set(labels.ravel().tolist()) == set(range(FIRST, task.vocab_size))


def test_splits_lie_apart_in_the_file(numbered):
    task = tasks.make("text", path=str(numbered), **SMALL)
    content = numbered.read_bytes()
    spans = {"train": (0, 3600), "validation": (3600, 3800), "test": (3800, 4000)}
    for split, (start, stop) in spans.items():
        examples = data.block(task, 0, split, 0, 8)
        for row in np.hstack([examples.source, examples.labels]):
            assert to_bytes(row) in content[start:stop]


def test_windows_reach_both_ends_of_their_part(tmp_path):
    path = tmp_path / "tiny"
    path.write_bytes(bytes(range(100)))
    task = tasks.make("text", path=str(path), train_lengths=[2, 2], test_lengths=[2], continuation=1)
    examples = data.block(task, 0, "test", 0, 2)
    assert set(examples.source[:, 0] - FIRST) == {95, 96, 97}


def test_prefix_zero_is_pure_language_modelling(numbered):
    task = tasks.make("text", path=str(numbered), train_lengths=[0, 0], test_lengths=[0, 8], continuation=6)
    source, target, labels = task.sample(np.random.default_rng(0), 5, 0)
    assert source.tolist() == [[BOS]] * 5
    assert (target.shape, labels.shape) == ((5, 6), (5, 6))
    assert "not comparable for encoder-decoders" in " ".join(data.describe(task)["notes"])


def test_a_folder_is_its_files_in_sorted_order(tmp_path):
    for name, content in {"b.txt": b"three", "a/z.txt": b"two", "a/b/c": b"one", ".git/x": b"no", "e": b""}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    read = corpus.read(str(tmp_path), 1000)
    assert read.data.tobytes() == b"onetwothree"
    assert (read.digest, read.files) == (hashlib.sha256(b"onetwothree").hexdigest(), 3)


def test_the_cap_keeps_the_beginning_and_says_so(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 400)
    config = {"train_lengths": [2, 2], "test_lengths": [2], "continuation": 1, "path": str(tmp_path)}
    described = data.describe(tasks.make("text", max_bytes=500, **config))
    assert (described["bytes"], described["files"]) == (500, 2)
    assert "700 were left out" in described["notes"][0]
    assert corpus.read(str(tmp_path), 500).data.tobytes() == b"a" * 400 + b"b" * 100
    assert data.describe(tasks.make("text", **config))["notes"] == []


def test_the_default_is_the_standard_librarys_source():
    described = data.describe(tasks.make("text"))
    content = corpus.read("", 2**26).data.tobytes()
    assert described["corpus"] == hashlib.sha256(content).hexdigest()
    assert (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes() in content
    assert described["bytes"] == len(content) > 2**22


def test_the_standard_library_is_neither_its_tests_nor_installed_packages(tmp_path, monkeypatch):
    for name in ("b.py", "a/c.py", "site-packages/x.py", "test/x.py", "a/tests/x.py", "data.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    assert corpus.read("", 1234).data.tobytes() == b"a/c.pyb.py"


def test_bytes_are_read_once_per_process(numbered):
    task = tasks.make("text", path=str(numbered), **SMALL)
    before = tokens(task)
    numbered.write_bytes(b"changed")
    assert tokens(task) == before


def tokens(task):
    return task.sample(np.random.default_rng(0), 4, 8).source.tolist()


@pytest.mark.parametrize(
    ("content", "config", "said"),
    [
        (None, {}, "no text at"),
        (b"", {}, "holds no bytes"),
        (b"short", {}, "needs 14"),
        (b"x" * 1000, {"test_lengths": [500]}, "length 500 with continuation 6 needs 506"),
        (b"x" * 1000, {"continuation": 0}, "at least 1 byte"),
        (b"x" * 1000, {"max_bytes": 0}, "at least 1"),
        (b"x" * 1000, {"train_lengths": [-1, 4]}, "0 <= shortest"),
    ],
)
def test_a_users_mistake_gets_one_sentence(tmp_path, content, config, said):
    path = tmp_path / "given.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        tasks.make("text", path=str(path), **{**SMALL, **config})
    assert "\n" not in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    """Permissions do not stop root, so the refusal is played."""
    path = tmp_path / "secret.txt"
    path.write_bytes(b"x" * 1000)

    opened = Path.open

    def refuse(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, os.strerror(13), str(path))
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot read .*secret\.txt: Permission denied"):
        tasks.make("text", path=str(path), **SMALL)
