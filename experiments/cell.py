"""A cell: one architecture on one task with one seed and learning rate, or the measurement of its cost."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from experiments.config import Cost, Train

Kind = Literal["train", "cost"]
STATUSES = ("done", "oom", "nan", "timeout", "failed")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Everything that determines a result, resolved: two cells with one key would compute the same."""

    kind: Kind
    label: str
    """The variant as the user wrote it: `seq2seq:attention=none`."""
    arch: str
    """Name or file."""
    arch_config: dict[str, Any]
    """Every field of the architecture's Config, after matching."""
    task_label: str
    task: str
    """Name or file."""
    task_config: dict[str, Any]
    """Every field of the task's Config."""
    seed: int = 0
    lr: float = 0.0
    train: Train = field(default_factory=Train)
    cost: Cost = field(default_factory=Cost)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types only."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Cell:
        """The inverse of `to_json`."""
        cost = dict(data["cost"], contexts=tuple(data["cost"]["contexts"]))
        return cls(**{**data, "train": Train(**data["train"]), "cost": Cost(**cost)})

    @property
    def key(self) -> str:
        """Hash of the resolved configuration: the record's name."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def folder_name(self) -> str:
        """Where its TensorBoard events go, below tb/: readable, the same for every run of the cell."""
        return f"{slug(self.label)}/{slug(self.task_label)}/seed{self.seed}-lr{self.lr:g}"


def slug(text: str) -> str:
    """A label as a folder name: `seq2seq:attention=none` -> `seq2seq-attention-none`; empty where nothing is left."""
    return "".join(character if character.isalnum() or character in "._" else "-" for character in text).strip("-._")
