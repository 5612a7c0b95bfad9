"""Published peaks of accelerators: what bounds a prediction. Dense rates, without structured sparsity."""

from __future__ import annotations

from dataclasses import dataclass

from experiments import strict
from experiments.errors import UserError

T, GB = 10**12, 10**9


@dataclass(frozen=True)
class Card:
    """A card's memory in bytes, its peak FLOPs per second with float32 accumulation, and bytes per second of memory."""

    title: str
    memory: int
    half: float
    """bfloat16 and float16 matrix units."""
    single: float
    """float32 without TF32, torch's default."""
    bandwidth: float
    source: str

    def peak(self, dtype: str) -> float:
        """FLOPs per second in a dtype."""
        return self.single if dtype == "float32" else self.half


_H100 = "NVIDIA H100 Tensor Core GPU datasheet, SXM column; sparse rates halved"
_A100 = "NVIDIA A100 Tensor Core GPU datasheet, SXM column"
CARDS = {
    "h100": Card("H100 SXM 80 GB", 80 * GB, 989.4 * T, 66.9 * T, 3350 * GB, _H100),
    "h200": Card(
        "H200 SXM 141 GB",
        141 * GB,
        989.4 * T,
        66.9 * T,
        4800 * GB,
        "NVIDIA H200 Tensor Core GPU datasheet, SXM column; sparse rates halved",
    ),
    "a100": Card("A100 SXM 80 GB", 80 * GB, 312 * T, 19.5 * T, 2039 * GB, _A100),
    "a100-40gb": Card("A100 SXM 40 GB", 40 * GB, 312 * T, 19.5 * T, 1555 * GB, _A100),
    "4090": Card(
        "GeForce RTX 4090 24 GB",
        24 * GB,
        165.2 * T,
        82.6 * T,
        1008 * GB,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A; float32 accumulation",
    ),
}


def card(name: str) -> Card:
    """The card of a name. Raises UserError for an unknown one."""
    if name not in CARDS:
        raise UserError(f"unknown card {name!r}: {strict.nearest(name, CARDS)}")
    return CARDS[name]
