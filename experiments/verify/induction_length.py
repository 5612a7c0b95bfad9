"""Mamba's induction heads work far beyond the trained length, those of rotary attention do not."""

from __future__ import annotations

from typing import Any

from experiments.verify import Accuracy, Finding

CLAIM = (
    "induction heads, trained at 256: Mamba perfect to 2^20, rotary attention 84 % at twice, 31 % at four times that"
)
SOURCE = "Gu & Dao 2023, table 11; here trained at 64"
HOLDS_IF = "both get 98 % at the trained length; at four times that Mamba gets 95 %, rotary attention less than 50 %"

EXPERIMENT: dict[str, Any] = {
    "archs": ["mamba", "gqa"],
    "tasks": ["induction"],
    "seeds": 1,
    "train": {"steps": 2500, "batch_size": 16, "val_every": 100, "val_examples": 64, "weight_decay": 0.0,
              "stop_when_solved": False},
    "arch": {
        "mamba": {"d_model": 64, "n_layers": 2, "learning_rate": 0.001},
        "gqa": {"d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 4, "learning_rate": 0.001},
    },
    "task": {"induction": {"train_lengths": [64, 64], "test_lengths": [64, 128, 256]}},
    "budget": {"by": "none"},
    "cost": {"contexts": [64, 128], "seconds": 0.05},
}  # fmt: skip


def judge(accuracy: Accuracy) -> Finding:
    """Compare the two where they were trained and at four times that."""
    mamba, rotary = accuracy["mamba"], accuracy["gqa"]
    here = ", ".join(f"{mamba[length]:.2f} and {rotary[length]:.2f} at {length}" for length in mamba)
    trained = min(mamba[64], rotary[64]) >= 0.98
    return Finding(f"Mamba and rotary attention {here}", trained and mamba[256] >= 0.95 and rotary[256] < 0.5)
