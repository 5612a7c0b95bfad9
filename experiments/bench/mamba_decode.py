"""One token of mamba, its state written in place, against the steps of transformers and mambapy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

import archs
from experiments.bench._decoding import CONTEXTS, LAYERS, ROOM, ROWS, as_graph, floor, one_token
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, random_ids

STATES = 16


def cases(device: torch.device) -> Iterator[Case]:
    """One row and several, of a small and of a large model; the state is as large after a short context as after a
    long one, so that the long one is read once only."""
    for width in (128, 768):
        for rows in ROWS:
            yield _case(width, rows, CONTEXTS[0], device)
    yield _case(128, 1, CONTEXTS[1], device)


@torch.inference_mode()
def _case(width: int, rows: int, context: int, device: torch.device) -> Case:
    ids = random_ids(rows, context, device)
    model = archs.build("mamba", VOCABULARY, d_model=width, n_layers=LAYERS, d_state=STATES).to(device).eval()
    state = model.encode(archs.Tokens(ids), ROOM)
    graph = as_graph(model, state, ids[:, :1])
    ours = one_token(state, lambda state, token: model.decode(state, token)[1], ids[:, :1])
    peers = {
        "transformers": peer("transformers", lambda module: _transformers(module, width, ids)),
        "mambapy": peer("mambapy.mamba", lambda module: _mambapy(module, width, ids)),
    }
    return Case(
        f"d_model={width}, {rows} rows after {context}",
        ours,
        floor(model, 2.0 * state.nbytes),
        graph | peers,
    )


def _transformers(module: Any, width: int, ids: Tensor) -> Work:
    config = module.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=width, state_size=STATES, num_hidden_layers=LAYERS, use_mambapy=False
    )
    model = module.MambaForCausalLM(config).to(ids.device).eval()
    cache = model(ids[:, :16], use_cache=True).cache_params  # of any context's size

    def decode(cache: Any, token: Tensor) -> Any:
        return model(token, cache_params=cache, use_cache=True).cache_params

    return one_token(cache, decode, ids[:, :1])


def _mambapy(module: Any, width: int, ids: Tensor) -> Work:
    config = module.MambaConfig(d_model=width, n_layers=LAYERS, d_state=STATES)
    body = module.Mamba(config).to(ids.device).eval()
    embedding = torch.nn.Embedding(VOCABULARY, width, device=ids.device)
    readout = torch.nn.Linear(width, VOCABULARY, bias=False, device=ids.device)
    columns = torch.zeros(len(ids), config.d_inner, config.d_conv - 1, device=ids.device)

    def decode(caches: Any, token: Tensor) -> Any:
        x, caches = body.step(embedding(token[:, 0]), caches)
        readout(x)
        return caches

    return one_token([(None, columns)] * LAYERS, decode, ids[:, :1])
