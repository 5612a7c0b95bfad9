"""Checkpoints as transformers writes them: the same logits, whole, in pieces and token by token; or one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

import archs
from archs.contract import Tokens
from archs.pretrained import read_pretrained

TOLERANCE = {"rtol": 2e-4, "atol": 2e-5}
"""Of logits of order one in float32: two orders of the same sums."""
LLAMA = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA_3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
MAMBA = {"vocab_size": 48, "hidden_size": 24, "num_hidden_layers": 2, "state_size": 4}
MARIAN = {
    "vocab_size": 48,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 40,
    "max_position_embeddings": 64,
    "pad_token_id": 39,
    "eos_token_id": 0,
    "decoder_start_token_id": 39,
}
CHECKPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", LLAMA),
    "llama-tied": ("Llama", {**LLAMA, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama-biases": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-wide-heads": ("Llama", {**LLAMA, "head_dim": 12}),
    "llama-3": ("Llama", {**LLAMA, "rope_parameters": LLAMA_3}),
    "llama-linear": ("Llama", {**LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mamba": ("Mamba", MAMBA),
    "mamba-untied": ("Mamba", {**MAMBA, "tie_word_embeddings": False, "time_step_rank": 3, "expand": 3}),
    "mamba-biases": ("Mamba", {**MAMBA, "use_bias": True, "use_conv_bias": False, "conv_kernel": 3}),
    "marian": ("Marian", {**MARIAN, "activation_function": "swish", "scale_embedding": True}),
    "marian-gelu": ("Marian", {**MARIAN, "decoder_layers": 1}),
    "marian-two-vocabularies": (
        "Marian",
        {**MARIAN, "vocab_size": 40, "decoder_vocab_size": 48, "share_encoder_decoder_embeddings": False},
    ),
}
MODELS = {"Llama": "LlamaForCausalLM", "Mamba": "MambaForCausalLM", "Marian": "MarianMTModel"}


def original(name: str) -> Any:
    """A tiny random model of transformers, every weight of its own, biases too."""
    kind, settings = CHECKPOINTS[name]
    torch.manual_seed(0)
    model = getattr(transformers, MODELS[kind])(getattr(transformers, f"{kind}Config")(**settings)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
        if kind == "Marian":
            model.final_logits_bias.normal_()
    return model


@pytest.fixture
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Any, Path]:
    """The model of a name in CHECKPOINTS, and the folder that holds it."""
    model = original(request.param)
    model.save_pretrained(tmp_path)
    return model, tmp_path


def logits(model: Any, source: Tensor, target: Tensor) -> Tensor:
    """What transformers computes at the target's positions."""
    if model.config.model_type == "marian":
        return model(input_ids=source, decoder_input_ids=target).logits
    return model(input_ids=torch.cat([source, target], 1)).logits[:, source.shape[1] :]


@pytest.mark.parametrize("saved", CHECKPOINTS, indirect=True)
def test_logits_are_those_of_transformers(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    backbone = archs.load_pretrained(folder)
    ids = torch.randint(3, 39, (2, 31))
    source, target = ids[:, :23], ids[:, 23:]
    with torch.inference_mode():
        wanted = logits(model, source, target)
        torch.testing.assert_close(backbone(Tokens(source), target), wanted, **TOLERANCE)
        state, pieces = backbone.encode(Tokens(source), room=8), []
        for token in target.split((3, 1, 1, 1, 1, 1), 1):
            piece, state = backbone.decode(state, token)
            pieces.append(piece)
        torch.testing.assert_close(torch.cat(pieces, 1), wanted, **TOLERANCE)


@pytest.mark.parametrize("saved", ["llama-3", "mamba", "marian"], indirect=True)
def test_shards_and_other_dtypes_are_read(saved: tuple[Any, Path], tmp_path: Path) -> None:
    model, folder = saved
    model.to(torch.bfloat16).save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    found = read_pretrained(tmp_path / "shards")
    assert found.dtype == "bfloat16"
    backbone = archs.load_pretrained(tmp_path / "shards")
    count = sum(parameter.numel() for parameter in backbone.parameters())
    assert count == sum(p.numel() for p in model.parameters() if p.requires_grad) + (
        model.final_logits_bias.numel() if found.model_type == "marian" else 0
    )
    assert torch.equal(backbone.embedding.weight, model.get_input_embeddings().weight.float())
    assert archs.load_pretrained(folder, torch.float64).readout.weight.dtype == torch.float64


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_the_older_words_for_rotary_positions_are_understood(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    edit(folder, rope_parameters=None, rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0})
    assert read_pretrained(folder).config["rope_theta"] == 5e5
    assert read_pretrained(folder).config["rope_scaling"] == "all"
    edit(folder, rope_scaling={**LLAMA_3, "rope_type": "yarn"})
    with pytest.raises(
        ValueError, match="rope_type must be 'default' or 'linear' or 'llama3' to be read here, got 'yarn'"
    ):
        read_pretrained(folder)


@pytest.mark.parametrize("saved", ["mamba"], indirect=True)
def test_weights_missing_and_unknown_are_named_in_one_error(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    weights = load_file(folder / "model.safetensors")
    weights["backbone.norm_f.weight"] = torch.ones(25)
    weights["surplus"] = weights.pop("backbone.layers.1.mixer.D")
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"not those of its config\.json") as caught:
        archs.load_pretrained(folder)
    told = str(caught.value)
    assert "missing: backbone.layers.1.mixer.D; unknown: surplus; of another shape: backbone.norm_f.weight" in told
    assert "(25,) instead of (24,)" in told
    with pytest.raises(ValueError, match="unknown: surplus"):
        read_pretrained(folder)


def test_a_folder_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    expected = "expected config.json of model_type llama or mamba or marian"
    with pytest.raises(ValueError, match=f"{expected}, got none .*; give a local Hugging Face folder"):
        archs.load_pretrained(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=f"{expected}, got a file that is not JSON"):
        archs.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=f"{expected}, got 'gpt2'; give a folder of one of these"):
        archs.load_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"config\.json has no 'vocab_size', which a llama checkpoint needs"):
        archs.load_pretrained(tmp_path)


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
def test_weights_that_cannot_be_read_are_one_sentence(saved: tuple[Any, Path]) -> None:
    _, folder = saved
    edit(folder, hidden_act="gelu")
    with pytest.raises(ValueError, match="hidden_act must be 'silu' to be read here, got 'gelu'"):
        archs.load_pretrained(folder)
    edit(folder, hidden_act="silu")
    (folder / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is no safetensors file"):
        archs.load_pretrained(folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"got pytorch_model\.bin; save it with safe_serialization"):
        archs.load_pretrained(folder)


def edit(folder: Path, **settings: Any) -> None:
    """Change config.json; None removes a key."""
    path = folder / "config.json"
    merged = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({key: value for key, value in merged.items() if value is not None}))
