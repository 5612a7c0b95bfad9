"""A fixed context vector forgets long sources; Bahdanau's attention does not."""

from __future__ import annotations

from typing import Any

from experiments.verify import Accuracy, Finding

CLAIM = "with length the quality of a plain Seq2Seq collapses, that of one with attention stays"
SOURCE = "Bahdanau et al. 2015, figure 2; here reversal instead of translation"
HOLDS_IF = "on reversal at the longest trained length attention is right on 95 % of tokens, and the plain one on less "
HOLDS_IF += "than 60 %, having been right on 80 % at a third of it"

EXPERIMENT: dict[str, Any] = {
    "archs": ["seq2seq:attention=none", "seq2seq:attention=bahdanau"],
    "tasks": ["reverse"],
    "seeds": 1,
    "train": {"steps": 1200, "batch_size": 32, "val_every": 120, "val_examples": 64, "weight_decay": 0.01},
    "task": {"reverse": {"train_lengths": [4, 12], "test_lengths": [4, 8, 12]}},
    "budget": {"by": "parameters", "value": 60_000},
    "cost": {"contexts": [32, 64], "seconds": 0.05},
}


def judge(accuracy: Accuracy) -> Finding:
    """Compare the two at lengths 4 and 12."""
    plain, attentive = accuracy["seq2seq:attention=none"], accuracy["seq2seq:attention=bahdanau"]
    here = ", ".join(
        f"{plain[length]:.2f} plain and {attentive[length]:.2f} with attention at {length}" for length in (4, 12)
    )
    return Finding(here, attentive[12] >= 0.95 and plain[12] < 0.6 and plain[4] >= 0.8)
