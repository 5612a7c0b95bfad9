"""The file system is the registry: names, a user's own file, and one sentence for each mistake."""

from __future__ import annotations

import dataclasses
import operator
import re
import subprocess
import sys
import textwrap

import pytest
import torch

import archs
from archs import Backbone, Tokens, registry

OWN_FILE = '''
from dataclasses import dataclass
from typing import ClassVar
import torch
from torch import nn
from archs import Backbone, State

@dataclass(frozen=True, kw_only=True)
class Config:
    width: ClassVar[tuple[str, int]] = ("d_model", 1)
    inner: ClassVar[tuple[str, int]] = ("d_ff", 1)
    d_model: int = 8
    n_layers: int = 1

@dataclass(frozen=True)
class SumState(State):
    total: torch.Tensor

class Sum(Backbone[SumState]):
    """Adds the embeddings of everything read."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.d_model)
        self.readout = nn.Linear(config.d_model, vocab_size)

    def encode(self, source, room=0):
        x = self.embedding(source.ids)
        return SumState((x if source.mask is None else x * source.mask[..., None]).sum(1))

    def advance(self, state, target):
        total = state.total[:, None] + self.embedding(target).cumsum(1)
        return total.tanh(), SumState(total[:, -1].clone())
'''


@pytest.fixture
def own_file(tmp_path):
    path = tmp_path / "summing.py"
    path.write_text(OWN_FILE)
    return str(path)


def test_names_are_the_files_that_define_a_config():
    assert archs.names() == sorted(archs.names())
    assert {"gqa", "mamba", "seq2seq", "transformer"} <= set(archs.names())
    assert not {"attention", "contract", "generate", "ids", "registry", "verify", "__init__"} & set(archs.names())


@pytest.mark.parametrize("name", archs.names())
def test_every_architecture_is_a_config_and_one_backbone(name):
    module = archs.load(name)
    config = module.Config()
    assert dataclasses.is_dataclass(config)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.d_model = 1
    with pytest.raises(TypeError, match="positional"):
        module.Config(8)
    assert issubclass(archs.backbone_class(module), Backbone)
    fields = {field.name for field in dataclasses.fields(config)}
    assert {"d_model", "n_layers", "dropout", "learning_rate", "state_dtype"} <= fields
    assert {config.width[0], config.inner[0]} <= fields
    assert module.__doc__
    assert archs.backbone_class(module).__doc__


@pytest.mark.parametrize("name", archs.names())
def test_weights_come_from_torchs_generator(name):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(archs.build(name, 8, d_model=16).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_users_own_file_is_an_architecture(own_file):
    backbone = archs.build(own_file, 8, d_model=4)
    assert archs.load(own_file) is archs.load(own_file)
    assert archs.verify_contract(backbone).backbone == "Sum"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gpt", f"unknown architecture 'gpt': expected one of {', '.join(archs.names())}, or a file NAME.py"),
        ("nowhere/mine.py", "no architecture file at nowhere/mine.py: expected a Python file"),
    ],
)
def test_an_unknown_architecture_is_answered_with_what_exists(spec, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        archs.load(spec)


def test_a_file_without_a_backbone_is_refused(tmp_path):
    path = tmp_path / "empty_handed.py"
    path.write_text("class Config:\n    pass\n")
    with pytest.raises(
        ValueError, match="is no architecture: expected `class Config` and exactly one Backbone, found 0"
    ):
        archs.load(str(path))


def test_a_broken_file_is_read_again_once_mended(tmp_path):
    path = tmp_path / "mended.py"
    path.write_text("raise RuntimeError('half written')\n")
    with pytest.raises(ValueError, match=r"architecture file .*mended\.py does not import: RuntimeError: half written"):
        archs.load(str(path))
    path.write_text(OWN_FILE)
    assert archs.build(str(path), 8).readout.out_features == 8


def test_an_interrupt_while_a_file_runs_is_no_mistake_of_the_file(tmp_path):
    path = tmp_path / "interrupted.py"
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        archs.load(str(path))
    path.write_text(OWN_FILE)
    assert archs.load(str(path)).Config


def test_two_files_of_one_name_are_two_architectures(tmp_path):
    paths = []
    for folder, width in (("a", 5), ("b", 7)):
        (tmp_path / folder).mkdir()
        paths.append(tmp_path / folder / "summing.v2.py")
        paths[-1].write_text(OWN_FILE.replace("d_model: int = 8", f"d_model: int = {width}"))
    modules = [archs.load(str(path)) for path in paths]
    assert [module.Config().d_model for module in modules] == [5, 7]
    assert [archs.load(str(path)) for path in paths] == modules
    assert {registry.own_name(module.__name__) for module in modules} == {"summing_v2"}


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "summing.py").write_text(OWN_FILE)
    assert archs.load("~/summing.py") is archs.load(str(tmp_path / "summing.py"))


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gqa", {"d_model": 30, "n_heads": 4}, "gqa: d_model=30 must split into n_heads=4 heads of even width"),
        ("gqa", {"d_model": 12, "n_heads": 4}, "gqa: d_model=12 must split into n_heads=4 heads of even width"),
        ("gqa", {"n_heads": 4, "n_kv_heads": 3}, "gqa: n_heads=4 must be a multiple of n_kv_heads=3"),
        (
            "transformer",
            {"d_model": 20, "n_heads": 8},
            "transformer: d_model=20 must be even and a multiple of n_heads=8",
        ),
        ("transformer", {"norm": "middle"}, "transformer: norm must be 'post' or 'pre', got 'middle'"),
        ("seq2seq", {"attention": "dot"}, "seq2seq: attention must be one of none, bahdanau, luong, got 'dot'"),
        ("seq2seq", {"cell": "rnn"}, "seq2seq: cell must be one of gru, lstm, got 'rnn'"),
        ("seq2seq", {"score": "cosine"}, "seq2seq: score must be one of dot, general, got 'cosine'"),
        ("seq2seq", {"n_layers": 0}, "seq2seq: n_layers must be at least 1, got 0"),
        ("mamba", {"d_conv": 0}, "mamba: d_conv must be at least 1, got 0"),
        ("mamba", {"dt_min": 0.5}, "mamba: expected 0 < dt_min <= dt_max, got 0.5 and 0.1"),
    ],
)
def test_a_bad_config_is_one_sentence(name, config, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        archs.build(name, 16, **config)
    assert "\n" not in str(caught.value)


def sizes() -> list[tuple[str, str]]:
    """Every (architecture, field) that holds a whole number."""
    return [
        (name, field.name)
        for name in archs.names()
        for field in dataclasses.fields(archs.load(name).Config)
        if field.type in ("int", "int | None")
    ]


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize(("name", "size"), sizes())
def test_a_size_below_one_is_refused_by_name(name, size, value):
    with pytest.raises(ValueError, match=size):
        archs.load(name).Config(**{size: value})


@pytest.mark.parametrize("name", archs.names())
def test_an_unknown_field_is_refused(name):
    with pytest.raises(TypeError, match="d_modle"):
        archs.build(name, 16, d_modle=16)


def python(code: str) -> None:
    """Run code in a fresh interpreter; its assertions are ours."""
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_architectures_import_no_lightning_and_no_experiments():
    python("""
        import sys, archs, archs.ids, archs.registry
        assert archs.names() and "torch" not in sys.modules
        for name in archs.names():
            archs.load(name)
        for name in archs.__all__:
            getattr(archs, name)
        loaded = {module.split(".")[0] for module in sys.modules}
        assert not loaded & {"lightning", "pytorch_lightning", "experiments"}
    """)


def test_an_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'archs' has no attribute 'train'"):
        operator.attrgetter("train")(archs)


def test_positions_and_start_come_from_the_mask():
    tokens = Tokens(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([[False, False, True, True], [True] * 4]))
    assert tokens.start.tolist() == [2, 0]
    assert tokens.positions.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    assert Tokens(tokens.ids).start is None
    assert Tokens(tokens.ids).positions.tolist() == [[0, 1, 2, 3]]
