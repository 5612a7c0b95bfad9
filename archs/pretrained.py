"""Checkpoints of others: a local Hugging Face folder, config.json and safetensors, as one of our backbones.

Llama becomes gqa, Mamba mamba, and Marian, the encoder-decoder of the paper, transformer. transformers is not needed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import archs
from archs.checkpoint import Stored, tensors
from archs.contract import Backbone

_LOGITS_BIAS = "final_logits_bias"
"""Marian's bias of the readout, which is a row (1, V)."""


@dataclass(frozen=True)
class Pretrained:
    """What config.json says, in the words of our architectures."""

    folder: Path
    model_type: str
    arch: str
    vocab_size: int
    config: dict[str, Any]
    """Fields of the architecture's Config."""
    dtype: str
    """In which the weights are stored: float32, bfloat16, ..."""


@dataclass(frozen=True)
class _Family:
    """How one model_type maps to an architecture of ours."""

    arch: str
    translate: Callable[[_Settings], tuple[int, dict[str, Any]]]
    """config.json -> vocabulary and Config fields."""
    names: Mapping[str, str]
    """Our module or parameter -> theirs; {} stands for a layer's number, and a,b for two joined by rows."""
    also: Mapping[str, tuple[str, ...]]
    """Their weight -> other names under which the same one is found."""
    ignored: str
    """Pattern of their weights that hold nothing to be learnt."""


class _Settings(dict[str, Any]):
    """config.json. Raises ValueError, in one sentence, for what is missing or unknown to us."""

    def need(self, key: str) -> Any:
        if self.get(key) is None:
            raise ValueError(f"config.json has no {key!r}, which a {self['model_type']} checkpoint needs")
        return self[key]

    def only(self, key: str, *known: Any) -> Any:
        """The value, the first of those known where it is not set."""
        value = self.get(key, known[0])
        if value not in known:
            raise ValueError(f"{key} must be {' or '.join(map(repr, known))} to be read here, got {value!r}")
        return value


def read_pretrained(folder: str | Path) -> Pretrained:
    """What a checkpoint is, its weights unread but their names and shapes checked.

    Raises ValueError, in one sentence, for a folder that holds none that is known.
    """
    pretrained = _described(Path(folder).expanduser())
    with torch.device("meta"):
        backbone = archs.build(pretrained.arch, pretrained.vocab_size, **pretrained.config)
    _assign(pretrained, backbone, lambda parameter, parts: None)
    return pretrained


def load_pretrained(folder: str | Path, dtype: torch.dtype = torch.float32) -> Backbone:
    """The backbone of a Llama, Mamba or Marian checkpoint, in eval mode, with the logits of the original.

    folder: config.json beside model.safetensors, or the shards that model.safetensors.index.json names.
    Raises ValueError, in one sentence, for a folder that holds none of these, and for weights missing or unknown.
    """
    pretrained = _described(Path(folder).expanduser())
    backbone = archs.build(pretrained.arch, pretrained.vocab_size, **pretrained.config).to(dtype)
    with torch.no_grad():
        _assign(pretrained, backbone, lambda mine, theirs: mine.copy_(_whole(theirs, mine)))
    return backbone.eval()


def _described(folder: Path) -> Pretrained:
    expected = f"expected config.json of model_type {' or '.join(_FAMILIES)}"
    try:
        settings = _Settings(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except OSError as error:
        raise ValueError(
            f"{folder} holds no checkpoint: {expected}, got none ({error.strerror}); give a local Hugging Face folder"
        ) from None
    except ValueError:
        raise ValueError(
            f"{folder} holds no checkpoint: {expected}, got a file that is not JSON; fetch it anew"
        ) from None
    family = _FAMILIES.get(settings.get("model_type", ""))
    if family is None:
        raise ValueError(
            f"{folder} holds no checkpoint that can be read: {expected}, got {settings.get('model_type')!r}; "
            f"give a folder of one of these"
        )
    try:
        vocab_size, config = family.translate(settings)
    except ValueError as error:
        raise ValueError(f"{folder} cannot be read: {error}; give a checkpoint without it") from None
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    return Pretrained(folder, settings["model_type"], family.arch, vocab_size, config, dtype)


def _assign(pretrained: Pretrained, backbone: Backbone, copy: Callable[[Tensor, list[Stored]], Any]) -> None:
    """Call `copy` with each parameter and the stored tensors that make it up, once all of them are known to be there.

    Raises ValueError that names every weight that is missing, unknown, or of another shape.
    """
    family, stored = _FAMILIES[pretrained.model_type], tensors(pretrained.folder)
    parameters = dict(backbone.named_parameters())
    wanted = {name: _theirs(family, name) for name in parameters}
    used = {part for parts in wanted.values() for part in parts}
    twins = {part: [twin for twin in family.also.get(part, ()) if twin not in used] for part in used}
    stored = {part: stored[twin] for part in used for twin in twins[part] if twin in stored} | stored
    known = used.union(*twins.values())
    whole = [name for name in parameters if all(part in stored for part in wanted[name])]
    shapes = {name: _joined([stored[part] for part in wanted[name]]) for name in whole}
    wrong = {
        "missing": used - stored.keys(),
        "unknown": {name for name in stored.keys() - known if not re.search(family.ignored, name)},
        "of another shape": {
            f"{' + '.join(wanted[name])} {shapes[name]} instead of {tuple(parameters[name].shape)}"
            for name in whole
            if shapes[name] != tuple(parameters[name].shape)
        },
    }
    if any(wrong.values()):
        said = "; ".join(f"{kind}: {', '.join(sorted(names))}" for kind, names in wrong.items() if names)
        raise ValueError(f"the weights in {pretrained.folder} are not those of its config.json: {said}")
    for name, parameter in parameters.items():
        copy(parameter, [stored[part] for part in wanted[name]])


def _theirs(family: _Family, name: str) -> list[str]:
    """Their names of what makes up a parameter of ours."""
    numbers = re.findall(r"\.(\d+)\.", name)[:1]
    general = re.sub(r"\.\d+\.", ".{}.", name, count=1)
    if general in family.names:
        return [part.format(*numbers) for part in family.names[general].split(",")]
    module, _, leaf = general.rpartition(".")
    return [f"{part}.{leaf}".format(*numbers) for part in family.names[module].split(",")]


def _whole(parts: list[Stored], like: Tensor) -> Tensor:
    return torch.cat([part.read() for part in parts]).view_as(like)


def _joined(parts: list[Stored]) -> tuple[int, ...]:
    """The shape of tensors joined by rows."""
    if parts[0].name == _LOGITS_BIAS:
        return parts[0].shape[1:]
    return (sum(part.shape[0] for part in parts), *parts[0].shape[1:])


def _llama(c: _Settings) -> tuple[int, dict[str, Any]]:
    c.only("hidden_act", "silu")
    rope = _Settings({**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {}), "model_type": "llama"})
    rope.only("partial_rotary_factor", 1.0)
    rope["rope_type"] = rope.get("rope_type", rope.get("type", "default"))
    kind, scaling = rope.only("rope_type", "default", "linear", "llama3"), {}
    if kind != "default":
        scaling = {"rope_factor": rope.need("factor"), "rope_scaling": "all" if kind == "linear" else "low"}
    if kind == "llama3":
        scaling["rope_low_freq_factor"] = rope.need("low_freq_factor")
        scaling["rope_high_freq_factor"] = rope.need("high_freq_factor")
        scaling["rope_original_context"] = rope.need("original_max_position_embeddings")
    return c.need("vocab_size"), {
        "d_model": c.need("hidden_size"),
        "n_layers": c.need("num_hidden_layers"),
        "n_heads": c.need("num_attention_heads"),
        "n_kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
        "d_head": c.get("head_dim"),
        "d_ff": c.need("intermediate_size"),
        "rope_theta": rope.get("rope_theta") or c.get("rope_theta", 10_000.0),
        **scaling,
        "norm_eps": c.get("rms_norm_eps", 1e-6),
        "attention_bias": c.get("attention_bias", False),
        "mlp_bias": c.get("mlp_bias", False),
        "tied_embeddings": c.get("tie_word_embeddings", False),
    }


def _mamba(c: _Settings) -> tuple[int, dict[str, Any]]:
    c.only("hidden_act", "silu")
    width, rank = c.need("hidden_size"), c.get("time_step_rank", "auto")
    return c.need("vocab_size"), {
        "d_model": width,
        "n_layers": c.need("num_hidden_layers"),
        "d_inner": c.get("intermediate_size") or int(c.get("expand", 2) * width),
        "d_state": c.get("state_size", 16),
        "d_conv": c.get("conv_kernel", 4),
        "dt_rank": None if rank == "auto" else rank,
        "bias": c.get("use_bias", False),
        "conv_bias": c.get("use_conv_bias", True),
        "norm_eps": c.get("layer_norm_epsilon", 1e-5),
        "tied_embeddings": c.get("tie_word_embeddings", True),
    }


def _marian(c: _Settings) -> tuple[int, dict[str, Any]]:
    for size in ("attention_heads", "ffn_dim"):
        c.only(f"decoder_{size}", c.need(f"encoder_{size}"))
    shared = c.get("share_encoder_decoder_embeddings", True)
    if shared:
        c.only("tie_word_embeddings", True)
    activation = c.only("activation_function", "gelu", "relu", "silu", "swish")
    return c.get("decoder_vocab_size") or c.need("vocab_size"), {
        "d_model": c.need("d_model"),
        "n_layers": c.need("encoder_layers"),
        "n_decoder_layers": c.need("decoder_layers"),
        "n_heads": c["encoder_attention_heads"],
        "d_ff": c["encoder_ffn_dim"],
        "activation": "silu" if activation == "swish" else activation,
        "positions": "halves",
        "scaled_embeddings": c.get("scale_embedding", False),
        "source_vocab_size": None if shared else c.need("vocab_size"),
        "readout_bias": True,
        "tied_embeddings": c.get("tie_word_embeddings", True),
    }


def _attention(ours: str, theirs: str, out: str) -> dict[str, str]:
    return {
        f"{ours}.query": f"{theirs}.q_proj",
        f"{ours}.key_value": f"{theirs}.k_proj,{theirs}.v_proj",
        f"{ours}.out": f"{theirs}.{out}",
    }


def _marian_layer(side: str, *sublayers: tuple[str, str, str]) -> Iterator[tuple[str, str]]:
    """sublayers: our attention, theirs, and the norm after it."""
    ours, theirs = f"{side}.{{}}", f"model.{side}.layers.{{}}"
    for number, (attention, theirs_of_it, norm) in enumerate(sublayers):
        yield from _attention(f"{ours}.{attention}", f"{theirs}.{theirs_of_it}", "out_proj").items()
        yield f"{ours}.residuals.{number}.norm", f"{theirs}.{norm}"
    yield f"{ours}.residuals.{len(sublayers)}.norm", f"{theirs}.final_layer_norm"
    yield f"{ours}.feed_forward.up", f"{theirs}.fc1"
    yield f"{ours}.feed_forward.down", f"{theirs}.fc2"


_SELF = ("attention", "self_attn", "self_attn_layer_norm")
_CROSS = ("cross", "encoder_attn", "encoder_attn_layer_norm")
_FAMILIES = {
    "llama": _Family(
        arch="gqa",
        translate=_llama,
        names={
            "embedding": "model.embed_tokens",
            "norm": "model.norm",
            "readout": "lm_head",
            "blocks.{}.attention_norm": "model.layers.{}.input_layernorm",
            "blocks.{}.feed_forward_norm": "model.layers.{}.post_attention_layernorm",
            **_attention("blocks.{}.attention", "model.layers.{}.self_attn", "o_proj"),
            "blocks.{}.feed_forward.gate_up": "model.layers.{}.mlp.gate_proj,model.layers.{}.mlp.up_proj",
            "blocks.{}.feed_forward.down": "model.layers.{}.mlp.down_proj",
        },
        also={"model.embed_tokens.weight": ("lm_head.weight",)},
        ignored=r"\.rotary_emb\.inv_freq$",
    ),
    "mamba": _Family(
        arch="mamba",
        translate=_mamba,
        names={
            "embedding": "backbone.embeddings",
            "norm": "backbone.norm_f",
            "readout": "lm_head",
            "blocks.{}.norm": "backbone.layers.{}.norm",
            "blocks.{}.mixer": "backbone.layers.{}.mixer",
            "blocks.{}.mixer.project_in": "backbone.layers.{}.mixer.in_proj",
            "blocks.{}.mixer.conv": "backbone.layers.{}.mixer.conv1d",
            "blocks.{}.mixer.selection.project": "backbone.layers.{}.mixer.x_proj",
            "blocks.{}.mixer.selection.expand_dt": "backbone.layers.{}.mixer.dt_proj",
            "blocks.{}.mixer.selection.dt_bias": "backbone.layers.{}.mixer.dt_proj.bias",
            "blocks.{}.mixer.project_out": "backbone.layers.{}.mixer.out_proj",
        },
        also={"backbone.embeddings.weight": ("backbone.embedding.weight", "lm_head.weight")},
        ignored="(?!)",
    ),
    "marian": _Family(
        arch="transformer",
        translate=_marian,
        names={
            "embedding": "model.decoder.embed_tokens",
            "source_embedding": "model.encoder.embed_tokens",
            "readout.weight": "lm_head.weight",
            "readout.bias": _LOGITS_BIAS,
            **dict(_marian_layer("encoder", _SELF)),
            **dict(_marian_layer("decoder", _SELF, _CROSS)),
        },
        also={
            "model.decoder.embed_tokens.weight": (
                "lm_head.weight", "model.encoder.embed_tokens.weight", "model.shared.weight",
            ),
            "model.encoder.embed_tokens.weight": ("model.shared.weight",),
        },
        ignored=r"\.embed_positions\.weight$",
    ),
}  # fmt: skip
