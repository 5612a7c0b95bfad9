"""A training step of gqa against LLaMA-like models of its shape: one embedding, heads, layers, widths, vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import archs
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, own_step_over, random_ids, step, weights

TOKENS, WIDTH, LAYERS, HEADS, KV_HEADS, HIDDEN = 8192, 128, 2, 4, 2, 344


def cases(device: torch.device) -> Iterator[Case]:
    """As many tokens in short rows as in long ones."""
    for length in (256, 1024, 4096):
        yield _case(TOKENS // length, length, device)


def _case(rows: int, length: int, device: torch.device) -> Case:
    ids = random_ids(rows, length + 1, device)
    sizes = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "d_ff": HIDDEN}
    model = archs.build("gqa", VOCABULARY, **sizes).to(device)
    ours = own_step_over(model, ids)
    peers = {
        "transformers": peer("transformers", lambda module: _transformers(module, ids)),
        "x-transformers": peer("x_transformers", lambda module: _x_transformers(module, ids)),
        "torch.nn": _torch(ids),
    }
    return Case(f"{rows} x {length} tokens", ours, _floor(model, rows, length), peers, together=True)


def _floor(model: nn.Module, rows: int, length: int) -> dict[str, float]:
    """Three products per weight and per score seen; what lies between products written and read, forward and back."""
    seen = rows * length * length / 2
    activations = LAYERS * (6 * WIDTH + 2 * WIDTH * KV_HEADS // HEADS + 3 * HIDDEN)
    return {
        "gemm": 6.0 * weights(model) * rows * length + LAYERS * 12.0 * seen * WIDTH,
        "copy": 4.0 * activations * rows * length * 4,
    }


def _transformers(module: Any, ids: Tensor) -> Work:
    config = module.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=ids.shape[1],
        attn_implementation="sdpa",
    )
    model = module.LlamaForCausalLM(config).to(ids.device)
    return step(model, lambda: model(ids[:, :-1], use_cache=False).logits, ids[:, 1:])


def _x_transformers(module: Any, ids: Tensor) -> Work:
    layers = module.Decoder(
        dim=WIDTH,
        depth=LAYERS,
        heads=HEADS,
        attn_dim_head=WIDTH // HEADS,
        attn_kv_heads=KV_HEADS,
        attn_flash=True,
        rotary_pos_emb=True,
        rotary_emb_dim=WIDTH // HEADS,
        use_rmsnorm=True,
        ff_glu=True,
        ff_swish=True,
        ff_no_bias=True,
        ff_mult=HIDDEN / WIDTH,
    )
    model = module.TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=ids.shape[1], attn_layers=layers, use_abs_pos_emb=False
    ).to(ids.device)
    return step(model, lambda: model(ids[:, :-1]), ids[:, 1:])


def _torch(ids: Tensor) -> Work:
    """Without a gate in the feed-forward and without grouped heads, which it does not know."""
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, HIDDEN, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    embedding, positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(ids.shape[1], WIDTH)
    model = nn.ModuleList([embedding, positions, body, readout := nn.Linear(WIDTH, VOCABULARY)]).to(ids.device)
    mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1] - 1, ids.device)

    def logits() -> Tensor:
        x = embedding(ids[:, :-1]) + positions.weight[: ids.shape[1] - 1]
        return readout(body(x, mask=mask, is_causal=True))

    return step(model, logits, ids[:, 1:])
