"""Generation, written once against `encode` and a Decoder: greedy, sampling, beam search.

Call `backbone.eval()` first: nothing here changes the mode of a module. The source's last token is followed by BOS;
a row that has ended stays PAD.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from archs.contract import Backbone, Tokens
from archs.decoder import Decoder
from archs.ids import BOS, EOS, PAD


def greedy(backbone: Backbone, source: Tokens, max_new_tokens: int, eos: int | None = EOS) -> Tensor:
    """The most likely token at each position.

    eos: the id that ends a row; None = none does. Returns ids (B, T) int64 without BOS, T <= max_new_tokens the length
    of the longest row, `eos` included.
    """
    return _generate(backbone, source, max_new_tokens, eos, lambda logits: logits.argmax(-1))


def sample(
    backbone: Backbone,
    source: Tokens,
    max_new_tokens: int,
    eos: int | None = EOS,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw each token from softmax(logits / temperature), cut to the `top_k` most likely, then to the nucleus `top_p`.

    top_p: the smallest set of tokens whose probabilities sum to at least this (Holtzman et al. 2020). generator: on the
    device of the source; None = torch's own. Returns ids as `greedy`. Raises ValueError for settings out of range.
    """
    if temperature <= 0:
        raise ValueError(f"sample: expected temperature > 0, got {temperature}; for the limit 0 use greedy()")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample: expected top_k >= 1, got {top_k}; None keeps every token")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"sample: expected 0 < top_p <= 1, got {top_p}; None keeps every token")
    draw = partial(_draw, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    return _generate(backbone, source, max_new_tokens, eos, draw)


def _draw(
    logits: Tensor, temperature: float, top_k: int | None, top_p: float | None, generator: torch.Generator | None
) -> Tensor:
    """Tokens (B,) for logits (B, V)."""
    logits = logits / temperature
    if top_k is not None:
        logits = _keep_top_k(logits, top_k)
    if top_p is not None:
        logits = _keep_nucleus(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def _keep_top_k(logits: Tensor, count: int) -> Tensor:
    """-inf for all but the `count` largest of each row (B, V)."""
    kept = logits.topk(min(count, logits.shape[-1]), -1)
    return torch.full_like(logits, float("-inf")).scatter(-1, kept.indices, kept.values)


def _keep_nucleus(logits: Tensor, mass: float) -> Tensor:
    """-inf for tokens that the more likely ones before them make unnecessary to reach `mass`; one is always kept."""
    ordered, order = logits.sort(-1, descending=True)
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    return torch.empty_like(logits).scatter(-1, order, ordered.masked_fill(before >= mass, float("-inf")))


def _generate(
    backbone: Backbone,
    source: Tokens,
    max_new_tokens: int,
    eos: int | None,
    choose: Callable[[Tensor], Tensor],
) -> Tensor:
    """Ids (B, T) chosen one by one from logits (B, V), as a tensor that autograd may use."""
    _check_room(max_new_tokens)
    with torch.inference_mode():
        ids = _run(backbone, source, max_new_tokens, eos, choose)
    return ids.clone()


def _check_room(max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise ValueError(f"expected max_new_tokens >= 1, got {max_new_tokens}")


def _run(
    backbone: Backbone, source: Tokens, max_new_tokens: int, eos: int | None, choose: Callable[[Tensor], Tensor]
) -> Tensor:
    count = len(source.ids)
    ids = source.ids.new_full((count, max_new_tokens), PAD)
    decoder = Decoder(backbone, backbone.encode(source, room=max_new_tokens))
    rows = torch.arange(count, device=ids.device)  # the row of `ids` that each row of the state writes
    token, ended = torch.full_like(rows, BOS), torch.zeros_like(rows, dtype=torch.bool)
    for column in range(max_new_tokens):
        token = choose(decoder.step(token)).masked_fill(ended, PAD)
        ids[rows, column] = token
        if eos is None:
            continue
        ended = ended | (token == eos)
        alive = int((~ended).sum())
        if alive == 0:
            return ids[:, : column + 1]
        # A select copies the state, about the price of a step: done at each halving, it happens log2(B) times at most.
        if 2 * alive <= len(rows):
            live = (~ended).nonzero()[:, 0]
            decoder.select(live)
            rows, token, ended = rows[live], token[live], ended[live]
    return ids


def beam(
    backbone: Backbone,
    source: Tokens,
    max_new_tokens: int,
    width: int,
    length_penalty: float = 0.0,
    eos: int | None = EOS,
) -> Tensor:
    """The best of `width` hypotheses per row, kept in parallel; width 1 is `greedy`.

    A hypothesis scores log p / ((5 + length) / 6) ** length_penalty (Wu et al. 2016, equation 14); one that has ended
    keeps its score and its place as long as no other beats it. Returns ids as `greedy`.
    Raises ValueError for a width or a number of tokens below 1.
    """
    _check_room(max_new_tokens)
    if width < 1:
        raise ValueError(f"beam: expected width >= 1, got {width}")
    with torch.inference_mode():
        ids = _search(backbone, source, max_new_tokens, width, length_penalty, eos)
    return ids.clone()


def _search(
    backbone: Backbone, source: Tokens, max_new_tokens: int, width: int, length_penalty: float, eos: int | None
) -> Tensor:
    """Beams are (B, W), the best first; the rows of the state are those of the flattened beams."""
    first = torch.arange(len(source.ids), device=source.ids.device)[:, None] * width
    state = backbone.encode(source, room=max_new_tokens).select((first // width).expand(-1, width).flatten())
    decoder = Decoder(backbone, state)
    ids = first.new_full((len(first), width, 1), BOS)
    lengths = torch.zeros_like(ids[..., 0])
    ended = torch.zeros_like(lengths, dtype=torch.bool)
    scores = torch.full(lengths.shape, float("-inf"), device=first.device)
    scores[:, 0] = 0.0  # all beams start alike: only the first is continued
    for _ in range(max_new_tokens):
        logits = decoder.step(ids[..., -1].flatten())
        lengths = lengths + ~ended
        continued = scores[..., None] + _continuations(logits.unflatten(0, lengths.shape), ended)
        ranked = continued / ((5 + lengths[..., None]) / 6) ** length_penalty
        best = ranked.flatten(1).topk(width).indices
        parents, token = best // logits.shape[-1], best % logits.shape[-1]
        scores = continued.flatten(1).gather(1, best)
        ids = torch.cat([ids.gather(1, parents[..., None].expand_as(ids)), token[..., None]], -1)
        lengths, ended = lengths.gather(1, parents), ended.gather(1, parents)
        ended = ended if eos is None else ended | (token == eos)
        if ended.all():
            break
        decoder.select((first + parents).flatten())
    return ids[:, 0, 1 : 1 + int(lengths[:, 0].max())]


def _continuations(logits: Tensor, ended: Tensor) -> Tensor:
    """Log-probabilities (B, W, V) of the next token, at least float32; after the end, PAD is certain."""
    following = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    only_pad = torch.full_like(following[0, 0], float("-inf"))
    only_pad[PAD] = 0.0
    return torch.where(ended[..., None], only_pad, following)
