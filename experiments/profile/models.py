"""Published models by name: their sizes, in the words of our architectures, and what their authors say of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A published model as a variant of an architecture."""

    arch: str
    config: dict[str, Any]
    vocab_size: int
    dtype: str
    parameters: float | None
    """As published; None where they are not."""
    source: str


def _llama(layers: int, width: int, heads: int, groups: int, hidden: int, **config: Any) -> dict[str, Any]:
    sizes = {"n_layers": layers, "d_model": width, "n_heads": heads, "n_kv_heads": groups, "d_ff": hidden}
    return {**sizes, "rope_theta": 500_000.0, **config}


def _llama_2(groups: int) -> dict[str, Any]:
    return _llama(32, 4096, 32, groups, 11008, rope_theta=10_000.0)


def _mamba(width: int, layers: int) -> dict[str, Any]:
    return {"d_model": width, "n_layers": layers, "tied_embeddings": True, "state_dtype": "model"}


_LLAMA_3 = "Llama 3 Herd of Models (2024), table 3; count of the released checkpoint"
_MAMBA = "state-spaces/mamba-* on the Hub: config.json, and the count of the released checkpoint"
_PAPER = "Vaswani et al. 2017, table 3, rounded to millions, with a vocabulary of about 37,000"

MODELS: dict[str, Model] = {
    "llama-3-8b": Model("gqa", _llama(32, 4096, 32, 8, 14336), 128_256, "bfloat16", 8_030_261_248, _LLAMA_3),
    "llama-3-70b": Model("gqa", _llama(80, 8192, 64, 8, 28672), 128_256, "bfloat16", 70_553_706_496, _LLAMA_3),
    "llama-3-405b": Model("gqa", _llama(126, 16384, 128, 8, 53248), 128_256, "bfloat16", 405_853_388_800, _LLAMA_3),
    "llama-2-7b": Model(
        "gqa", _llama_2(32), 32_000, "bfloat16", 6_738_415_616, "Llama 2 (2023); count of the released checkpoint"
    ),
    "llama-2-7b-gqa": Model(
        "gqa", _llama_2(8), 32_000, "bfloat16", None, "llama-2-7b with 8 groups of heads: a variant, never released"
    ),
    "llama-2-7b-mqa": Model(
        "gqa", _llama_2(1), 32_000, "bfloat16", None, "llama-2-7b with 1 group of heads: a variant, never released"
    ),
    "mamba-130m": Model("mamba", _mamba(768, 24), 50_280, "bfloat16", 129_135_360, _MAMBA),
    "mamba-370m": Model("mamba", _mamba(1024, 48), 50_280, "bfloat16", 371_516_416, _MAMBA),
    "mamba-790m": Model("mamba", _mamba(1536, 48), 50_280, "bfloat16", 793_204_224, _MAMBA),
    "mamba-1.4b": Model("mamba", _mamba(2048, 48), 50_280, "bfloat16", 1_372_178_432, _MAMBA),
    "mamba-2.8b": Model("mamba", _mamba(2560, 64), 50_280, "bfloat16", 2_768_345_600, _MAMBA),
    "transformer-base": Model(
        "transformer", {"d_model": 512, "n_layers": 6, "n_heads": 8, "d_ff": 2048}, 37_000, "float32", 65e6, _PAPER
    ),
    "transformer-big": Model(
        "transformer", {"d_model": 1024, "n_layers": 6, "n_heads": 16, "d_ff": 4096}, 37_000, "float32", 213e6, _PAPER
    ),
    "rnnsearch-50": Model(
        "seq2seq",
        {"d_model": 620, "d_hidden": 1000, "attention": "bahdanau", "query_sees_input": False},
        30_000,
        "float32",
        None,
        "Bahdanau et al. 2015, appendix B: 1000 hidden units, 620-dimensional embeddings, 30,000 words",
    ),
}


def mamba_ssm_state_bytes(config: dict[str, Any], item: int) -> int:
    """Bytes of mamba_ssm's inference cache: d_conv columns and d_state values per channel, `item` bytes each.

    Ours keeps d_conv - 1 columns, all that the next step reads.
    """
    channels = config.get("d_inner") or 2 * config["d_model"]
    kept = config.get("d_conv", 4) + config.get("d_state", 16)
    return config["n_layers"] * channels * kept * item
