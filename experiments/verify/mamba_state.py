"""Mamba's decoding state does not grow with context, and is as large as its layout says."""

from __future__ import annotations

from experiments.profile.models import MODELS
from experiments.profile.predict import state_bytes
from experiments.verify import Finding

CLAIM = "mamba-130m keeps 24 layers x 1,536 channels x (16 states + 3 columns) x 2 bytes, at any context"
SOURCE = "arithmetic from Gu & Dao 2023, section 3.4, and the released sizes"
HOLDS_IF = "the state after 64 and after 4,096 tokens is that, to the byte"


def check() -> Finding:
    """Measure the state of a model of these sizes, on fake tensors."""
    expected = 24 * 1536 * (16 + 3) * 2
    short, long = state_bytes(MODELS["mamba-130m"], (64, 4096))
    return Finding(f"{short:,} and {long:,} bytes; the layout says {expected:,}", short == long == expected)
