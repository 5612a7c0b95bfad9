"""A training step of the encoder-decoder transformer against others of its shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import archs
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, own_step, random_ids, step, weights

TOKENS, WIDTH, LAYERS, HEADS, HIDDEN = 8192, 128, 2, 8, 512


def cases(device: torch.device) -> Iterator[Case]:
    """As many tokens, half of them source and half target, in short rows as in long ones."""
    for length in (256, 1024, 4096):
        yield _case(TOKENS // 2 // length, length, device)


def _case(rows: int, length: int, device: torch.device) -> Case:
    source, target = random_ids(rows, length, device), random_ids(rows, length, device)
    sizes = {"d_model": WIDTH, "n_layers": LAYERS, "n_heads": HEADS, "d_ff": HIDDEN}
    model = archs.build("transformer", VOCABULARY, **sizes).to(device)
    ours = own_step(model, archs.Tokens(source), target)
    peers = {
        "transformers": peer("transformers", lambda module: _transformers(module, source, target)),
        "x-transformers": peer("x_transformers", lambda module: _x_transformers(module, source, target)),
        "torch.nn": _torch(source, target),
    }
    return Case(f"{rows} x {length} -> {length} tokens", ours, _floor(model, rows, length), peers, together=True)


def _floor(model: nn.Module, rows: int, length: int) -> dict[str, float]:
    """Three products per weight and per score seen; what lies between products written and read, forward and back."""
    seen = 2.5 * rows * length * length  # of the source by itself and by the target, and half of the target by itself
    activations = LAYERS * (7 * WIDTH + HIDDEN + 12 * WIDTH + HIDDEN)
    return {
        "gemm": 6.0 * weights(model) * rows * length + LAYERS * 12.0 * seen * WIDTH,
        "copy": 4.0 * activations * rows * length * 4,
    }


def _transformers(module: Any, source: Tensor, target: Tensor) -> Work:
    sides = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": HIDDEN}.items()
    }
    config = module.MarianConfig(
        vocab_size=VOCABULARY,
        d_model=WIDTH,
        max_position_embeddings=source.shape[1],
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        forced_eos_token_id=2,
        activation_function="relu",
        scale_embedding=True,
        dropout=0.0,
        attn_implementation="sdpa",
        **sides,
    )
    model = module.MarianMTModel(config).to(source.device)
    return step(model, lambda: model(source, decoder_input_ids=target, use_cache=False).logits, target)


def _x_transformers(module: Any, source: Tensor, target: Tensor) -> Work:
    sides = {
        f"{side}_{name}": value
        for side in ("enc", "dec")
        for name, value in {
            "num_tokens": VOCABULARY,
            "depth": LAYERS,
            "heads": HEADS,
            "max_seq_len": source.shape[1],
            "attn_dim_head": WIDTH // HEADS,
            "attn_flash": True,
            "ff_mult": HIDDEN / WIDTH,
        }.items()
    }
    model = module.XTransformer(dim=WIDTH, tie_token_emb=True, **sides).to(source.device)
    return step(model, lambda: model.decoder.net(target, context=model.encoder(source, return_embeddings=True)), target)


def _torch(source: Tensor, target: Tensor) -> Work:
    body = nn.Transformer(WIDTH, HEADS, LAYERS, LAYERS, HIDDEN, dropout=0.0, batch_first=True)
    embedding, positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(source.shape[1], WIDTH)
    model = nn.ModuleList([embedding, positions, body, readout := nn.Linear(WIDTH, VOCABULARY)]).to(source.device)
    mask = nn.Transformer.generate_square_subsequent_mask(target.shape[1], target.device)

    def logits() -> Tensor:
        ahead, back = (embedding(ids) + positions.weight for ids in (source, target))
        return readout(body(ahead, back, tgt_mask=mask, tgt_is_causal=True))

    return step(model, logits, target)
