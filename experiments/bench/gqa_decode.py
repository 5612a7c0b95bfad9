"""One token of gqa, its keys and values written in place, against the cache of transformers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import archs
from archs.attention import Cache
from archs.contract import Lease
from experiments.bench._decoding import CONTEXTS, LAYERS, ROOM, ROWS, as_graph, floor, one_token
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, random_ids

HEADS = {128: (4, 2), 768: (12, 4)}
"""Width -> heads of queries, and of keys and values."""


def cases(device: torch.device) -> Iterator[Case]:
    """One row and several after a short and a long context, of a small and of a large model."""
    for width in HEADS:
        for context in CONTEXTS:
            for rows in ROWS:
                yield _case(width, rows, context, device)


@torch.inference_mode()
def _case(width: int, rows: int, context: int, device: torch.device) -> Case:
    heads, kv_heads = HEADS[width]
    sizes = {"d_model": width, "n_layers": LAYERS, "n_heads": heads, "n_kv_heads": kv_heads}
    model = archs.build("gqa", VOCABULARY, **sizes).to(device).eval()
    token = random_ids(rows, 1, device)
    state = _as_after(model.encode(archs.Tokens(token), context - 1 + ROOM), context)
    graph = as_graph(model, state, token)
    ours = one_token(state, lambda state, token: model.decode(state, token)[1], token)
    peers = {"transformers": peer("transformers", lambda module: _transformers(module, model.config, token, context))}
    read = LAYERS * 2 * 4.0 * rows * kv_heads * (width // heads) * context
    return Case(f"d_model={width}, {rows} rows after {context}", ours, floor(model, read), graph | peers)


def _as_after(state: Cache, context: int) -> Cache:
    """The state as if so many tokens had been read: what they were makes no difference to the time."""
    return dataclasses.replace(state, length=torch.full_like(state.length, context), lease=Lease(context))


def _transformers(module: Any, sizes: Any, token: Tensor, context: int) -> Work:
    config = module.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=sizes.d_model,
        intermediate_size=sizes.hidden,
        num_hidden_layers=LAYERS,
        num_attention_heads=sizes.n_heads,
        num_key_value_heads=sizes.n_kv_heads,
        max_position_embeddings=context + ROOM,
        attn_implementation="sdpa",
    )
    model = module.LlamaForCausalLM(config).to(token.device).eval()
    cache = module.DynamicCache()
    for layer in range(LAYERS):
        columns = torch.zeros(len(token), sizes.n_kv_heads, context, sizes.head_dim, device=token.device)
        cache.update(columns, columns.clone(), layer)

    def decode(cache: Any, token: Tensor) -> Any:
        return model(token, past_key_values=cache, use_cache=True).past_key_values

    return one_token(cache, decode, token)
