"""A training step of seq2seq with Bahdanau's attention against JoeyNMT's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import archs
from experiments.bench._measure import Case, Work
from experiments.bench._peers import peer
from experiments.bench._steps import VOCABULARY, own_step, random_ids, step, weights

WIDTH = 128


def cases(device: torch.device) -> Iterator[Case]:
    """Many short pairs, and two long ones."""
    yield _case(32, 128, device)
    yield _case(2, 2048, device)


def _case(rows: int, length: int, device: torch.device) -> Case:
    source, target = random_ids(rows, length, device), random_ids(rows, length, device)
    model = archs.build("seq2seq", VOCABULARY, d_model=WIDTH, attention="bahdanau").to(device)
    ours = own_step(model, archs.Tokens(source), target)
    theirs = peer("joeynmt.decoders", lambda module: _joeynmt(module, source, target))
    terms = float(rows * length * length)
    floor = {  # a term of a score is a reciprocal if the exponentials of queries and keys are at hand
        "reciprocal": 2 * terms * WIDTH,
        "gemm": 3 * (2 * terms * 2 * WIDTH + 2.0 * source.numel() * weights(model)),
    }
    return Case(f"{rows} x {length} -> {length} tokens", ours, floor, {"JoeyNMT": theirs}, together=True)


def _joeynmt(module: Any, source: Tensor, target: Tensor) -> Work:
    rows, length = source.shape
    sizes = {"emb_size": WIDTH, "hidden_size": WIDTH, "num_layers": 1, "dropout": 0.0, "emb_dropout": 0.0}
    encoder = module.Encoder.__subclasses__()[0](rnn_type="gru", bidirectional=True, **sizes)
    decoder = module.RecurrentDecoder(
        rnn_type="gru", encoder=encoder, attention="bahdanau", vocab_size=VOCABULARY, input_feeding=True, **sizes
    )
    embedding = nn.Embedding(VOCABULARY, WIDTH)
    model = nn.ModuleList([encoder, decoder, embedding]).to(source.device)
    lengths = torch.full((rows,), length)
    mask = torch.ones(rows, 1, length, dtype=torch.bool, device=source.device)

    def logits() -> Tensor:
        outputs, final = encoder(embedding(source), lengths, mask)
        return decoder(embedding(target), outputs, final, mask, length)[0]

    return step(model, logits, target)
