"""What attention architectures share: masks for left-padded batches, and the key-value cache."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from archs.contract import Lease, State

_MANY_HEADS = 128  # of all rows together, which are enough for a GPU
_PIECES = 64  # of the columns that one query sees

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of one layer, each (B, H, L, E)."""


def causal_mask(queries: int, keys: int, start: Tensor | None, device: torch.device) -> Tensor | None:
    """What the last `queries` of `keys` columns may see: bool (B, 1, T, K) or (T, K), lower-right aligned.

    start: (B,) first real column. None where no mask is needed beyond `is_causal`. Pads see themselves, never nothing,
    so that their unused rows stay finite.
    """
    if start is None and queries in (1, keys):
        return None
    columns = torch.arange(keys, device=device)
    return _visible(columns, columns[keys - queries :], start)


def _visible(columns: Tensor, query_columns: Tensor, start: Tensor | None) -> Tensor:
    own = query_columns[..., None]
    seen = columns <= own
    if start is not None:
        seen = ((columns >= start[:, None, None]) & seen) | (columns == own)
    return seen[:, None] if seen.ndim == 3 else seen


def source_mask(start: Tensor | None, columns: int) -> Tensor | None:
    """Which of `columns` source columns are real: bool (B, 1, 1, S); None without padding."""
    if start is None:
        return None
    return (torch.arange(columns, device=start.device) >= start[:, None])[:, None, None]


def attend(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float = 0.0, causal: bool = True
) -> Tensor:
    """Attention of (B, Hq, T, E) over (B, H, K, E), Hq a multiple of H.

    mask: of `causal_mask`, or of `source_mask` where not causal.
    """
    grouped = query.shape[1] != keys.shape[1]
    if query.shape[2] == 1 and (grouped or query.is_cuda):
        # The heads of a group are rows of one query then: keys and values are read once, and never repeated.
        rows = query.unflatten(1, (keys.shape[1], -1)).squeeze(3)
        return _of_one_query(rows, keys, values, mask, dropout).flatten(1, 2)[:, :, None]
    if grouped and query.device.type == "cuda" and (mask is not None or query.dtype == torch.float32):
        # No fused CUDA kernel takes groups there, and the unfused one holds the scores: repeated heads cost less.
        groups = query.shape[1] // keys.shape[1]
        keys, values, grouped = keys.repeat_interleave(groups, 1), values.repeat_interleave(groups, 1), False
    # In float64 the operation's reference would run, which holds all scores.
    if mask is None and not dropout and query.shape[2] > 1 and query.dtype != torch.float64:
        return kernels.attention(query, keys, values, causal)
    return F.scaled_dot_product_attention(
        query,
        keys,
        values,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None and query.shape[2] > 1,
        enable_gqa=grouped,
    )


def _of_one_query(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """As F.scaled_dot_product_attention, of (B, H, G, E): the one query that each of G heads has."""
    few = query.shape[0] * query.shape[1] < _MANY_HEADS
    if query.is_cuda and few and not dropout and keys.shape[2] >= _PIECES:
        return _in_pieces(query, keys, values, mask)
    return F.scaled_dot_product_attention(query, keys, values, mask, dropout)


def _in_pieces(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """The same, with the columns shared out in pieces.

    Fused kernels share out rows and heads alone, and leave most of a GPU idle here (Dao et al. 2023, Flash-Decoding).
    """
    scores = query @ keys.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    shared = keys.shape[2] // _PIECES * _PIECES
    parts = weights[..., :shared].unflatten(-1, (_PIECES, -1)).transpose(2, 3)
    summed = (parts @ values[:, :, :shared].unflatten(2, (_PIECES, -1))).sum(2)
    return summed + weights[..., shared:] @ values[:, :, shared:]


def attention_weights(query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax weights (B, Hq, T, K), materialised: for figures only. mask: bool, broadcast to them."""
    keys = keys.repeat_interleave(query.shape[1] // keys.shape[1], dim=1)
    scores = query @ keys.mT * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(-1)


def angle_dtype(device: torch.device) -> torch.dtype:
    """What position angles are computed in: float64, exact at any context, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Cache(State):
    """Keys and values of every layer. A value, unless it holds a lease on preallocated columns.

    layers: (keys, values) of (B, H, C, E) each. length: (B,) int64, real tokens read so far.
    start: (B,) int64, first real column, None without padding.
    """

    layers: tuple[KeyValue, ...]
    length: Tensor
    start: Tensor | None = None
    lease: Lease | None = None

    def positions(self, count: int) -> Tensor:
        """(B, count) int64, positions of the next tokens."""
        return self.length[:, None] + torch.arange(count, device=self.length.device)

    def claim(self, count: int) -> Slot:
        """Where the next `count` columns go; consumes the lease, if there is one. Raises StateConsumed."""
        device = self.length.device
        if self.lease is None:
            past = self.layers[0][0].shape[2]
            return Slot(self, None, causal_mask(count, past + count, self.start, device))
        filled = self.lease.filled
        if not self.lease.take():
            written = tuple((keys[:, :, :filled], values[:, :, :filled]) for keys, values in self.layers)
            return dataclasses.replace(self, layers=written, lease=None).claim(count)
        grown = dataclasses.replace(self, layers=self._with_room(filled, count), lease=Lease(filled + count))
        columns = torch.arange(grown.layers[0][0].shape[2], device=device)
        queries = self.positions(count) + (0 if self.start is None else self.start[:, None])
        return Slot(grown, queries[0], _visible(columns, queries, self.start))

    def _with_room(self, filled: int, count: int) -> tuple[KeyValue, ...]:
        """The layers, with columns for at least `count` more than are filled: doubled where there are none."""
        missing = filled + count - self.layers[0][0].shape[2]
        if missing <= 0:
            return self.layers
        return tuple((reserve(k, missing + filled), reserve(v, missing + filled)) for k, v in self.layers)


@dataclass(frozen=True)
class Slot:
    """Columns claimed for one call: the cache before it, where to write (None = append), and what to see."""

    cache: Cache
    columns: Tensor | None
    mask: Tensor | None

    def write(self, layer: int, keys: Tensor, values: Tensor) -> KeyValue:
        """All keys and values of a layer, the new (B, H, T, E) ones included."""
        old_keys, old_values = self.cache.layers[layer]
        if self.columns is None:
            if old_keys.shape[2] == 0:
                return keys, values
            return torch.cat([old_keys, keys], 2), torch.cat([old_values, values], 2)
        # Under autocast the new ones may be narrower than the cache.
        keys, values = keys.to(old_keys.dtype), values.to(old_values.dtype)
        return old_keys.index_copy_(2, self.columns, keys), old_values.index_copy_(2, self.columns, values)

    def close(self, layers: list[KeyValue], count: int) -> Cache:
        """The cache after the call."""
        return dataclasses.replace(self.cache, layers=tuple(layers), length=self.cache.length + count)


def reserve(columns: Tensor, room: int) -> Tensor:
    """(B, H, C, E) -> (B, H, C + room, E), zeros at the end; the same tensor where room is not positive."""
    return F.pad(columns, (0, 0, 0, room)) if room > 0 else columns
