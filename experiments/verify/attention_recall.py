"""Attention recalls every pair of its context, at any width."""

from __future__ import annotations

from typing import Any

from experiments.verify import Accuracy, Finding

CLAIM = "multi-query recall of 4 pairs in 64 tokens: attention gets about 1.00 at every width from 64"
SOURCE = "Arora et al. 2023 (Zoology), figure 2, with 8,192 words; here 128 keys and 128 values"
HOLDS_IF = "two layers of attention, 64 wide, answer 99 % of the queries"

EXPERIMENT: dict[str, Any] = {
    "archs": ["gqa"],
    "tasks": ["recall"],
    "seeds": 1,
    "train": {"steps": 3000, "batch_size": 64, "val_every": 100, "val_examples": 256, "weight_decay": 0.0},
    "arch": {"gqa": {"d_model": 64, "n_layers": 2, "n_heads": 1, "n_kv_heads": 1, "learning_rate": 0.003}},
    "task": {"recall": {"train_lengths": [4, 4], "test_lengths": [4], "keys": 128, "values": 128, "slots": 7}},
    "budget": {"by": "none"},
    "cost": {"contexts": [64, 128], "seconds": 0.05},
}


def judge(accuracy: Accuracy) -> Finding:
    """The share of right answers."""
    return Finding(f"{accuracy['gqa'][4]:.3f}", accuracy["gqa"][4] >= 0.99)
