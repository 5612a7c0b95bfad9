"""Llama 3's cache grows by the published bytes per token: grouped-query attention keeps one head of keys per group."""

from __future__ import annotations

from experiments.profile.models import MODELS
from experiments.profile.predict import state_bytes
from experiments.verify import Finding

CLAIM = "in bfloat16 a token of context takes 128 KiB in Llama 3 8B, 320 KiB in 70B and 504 KiB in 405B"
SOURCE = "arithmetic from Llama 3 Herd of Models (2024), table 3: 2 x layers x 8 heads x 128 x 2 bytes"
HOLDS_IF = "the state of the models of these sizes grows by that, to the byte"

_KIB = {"llama-3-8b": 128, "llama-3-70b": 320, "llama-3-405b": 504}


def check() -> Finding:
    """Measure the growth from 1,024 to 2,048 tokens, on fake tensors."""
    grown = {name: _bytes_per_token(name) for name in _KIB}
    here = ", ".join(f"{name} {grown[name] / 1024:g} KiB" for name in _KIB)
    return Finding(here, all(grown[name] == 1024 * kib for name, kib in _KIB.items()))


def _bytes_per_token(name: str) -> float:
    short, long = state_bytes(MODELS[name], (1024, 2048))
    return (long - short) / 1024
