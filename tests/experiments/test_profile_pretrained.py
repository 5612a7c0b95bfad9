"""A checkpoint of somebody else's in a profile, by its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from experiments import cli
from experiments.profile import config, plan
from experiments.profile.measure import measured

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny Llama in bfloat16."""
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES)).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "tiny-llama")
    return tmp_path / "tiny-llama"


def test_a_checkpoint_is_profiled_as_what_it_is(folder: Path) -> None:
    given = {"pretrained": str(folder), "contexts": "16", "modes": "prefill", "device": "cpu", "seconds": 0.0}
    profile = config.load(None, given)
    (item,) = plan.items(profile)
    (point,) = plan.measurements(profile, [item])
    result = measured(point, None, lambda told: None)
    assert (item.label, item.arch, item.dtype) == ("tiny-llama", "gqa", "bfloat16")
    assert result["parameters"] == item.parameters == 2 * 64 * 32 + 32 + 2 * (2 * 32 + 3 * 32 * 32 + 3 * 32 * 48)
    assert result["state_bytes"] == 16 * 2 * 2 * 2 * 8 * 2 + 8  # and the int64 length of the row


def test_a_checkpoint_that_is_not_whole_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "model.safetensors").unlink()
    assert cli.main(["profile", "--pretrained", str(folder), "--out", str(folder / "out")]) == 2
    told = capsys.readouterr().err
    assert "holds no weights that can be read: expected model.safetensors or model.safetensors.index.json" in told
    assert told.count("\n") == 1
    assert not (folder / "out").exists()
