"""A point: one architecture at one or several contexts in one mode, everything resolved that decides its result."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

Kind = Literal["measured", "predicted", "traced"]


@dataclass(frozen=True)
class Item:
    """One architecture of a profile, resolved."""

    label: str
    arch: str
    settings: dict[str, Any]
    """Every field of its Config."""
    vocab_size: int
    dtype: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Point:
    """Two points with one key would give the same. A measured one has a single context; a prediction makes them all."""

    kind: Kind
    label: str
    """The variant as the user wrote it: `gqa:n_kv_heads=1`."""
    arch: str
    """Name or file."""
    arch_config: dict[str, Any]
    """Every field of the architecture's Config."""
    vocab_size: int
    dtype: str
    """Of parameters and activations: float32, bfloat16 or float16."""
    device: str
    mode: str
    contexts: tuple[int, ...]
    """Source + target tokens."""
    rows: int = 1
    chunk: int = 0
    """Pieces in which a source is read; 0 = all at once."""
    seconds: float = 1.0
    """How long speed is measured."""
    fallback: tuple[str, ...] = ()
    """Slow kernel backends that may be measured."""
    threads: int = 0
    """Of the processor whose memory is meant: each takes scratch memory within our kernels. 0 = a GPU's is meant."""
    card: str = "none"
    limit: int | None = None
    """Bytes for which a prediction finds the longest context that fits; None = it does not."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Point:
        """The inverse of `to_json`."""
        return cls(**{**data, "contexts": tuple(data["contexts"]), "fallback": tuple(data["fallback"])})

    @property
    def key(self) -> str:
        """Hash of all of it: the record's name."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def series(self) -> tuple[str, str, int]:
        """What one line of a figure is: label, mode and rows."""
        return self.label, self.mode, self.rows

    @property
    def title(self) -> str:
        """In a few words: `mamba · decode x8 · 4096`."""
        context = "predicted" if self.kind == "predicted" else f"{self.contexts[0]:,}"
        return f"{self.label} · {self.mode}{f' x{self.rows}' if self.rows > 1 else ''} · {context}"
