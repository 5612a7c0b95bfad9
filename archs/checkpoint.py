"""The tensors of a Hugging Face folder: model.safetensors, or the shards that an index names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


class Stored:
    """A tensor in an open file."""

    def __init__(self, file: Any, name: str) -> None:
        self.file, self.name = file, name

    @property
    def shape(self) -> tuple[int, ...]:
        """Known without reading it."""
        return tuple(self.file.get_slice(self.name).get_shape())

    def read(self) -> Tensor:
        """The tensor itself."""
        return self.file.get_tensor(self.name)


def tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint by its name. Raises ValueError where its files are not all there and whole."""
    found: dict[str, Stored] = {}
    for file in _files(folder):
        try:
            opened = safe_open(file, "pt")
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{file} is no safetensors file that can be read ({error}); fetch it anew") from None
        found |= {name: Stored(opened, name) for name in opened.keys()}  # noqa: SIM118, it is no mapping
    return found


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        return [
            folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        ]
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    there = ", ".join(sorted(file.name for file in folder.glob("*.bin"))) or "neither"
    raise ValueError(
        f"{folder} holds no weights that can be read: expected {SINGLE} or {INDEX}, got {there}; "
        f"save it with safe_serialization"
    )
