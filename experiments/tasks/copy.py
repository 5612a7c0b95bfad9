"""String copying: `a b c` -> `a b c`.

Source: Jelassi et al. 2024, "Repeat After Me: Transformers are Better than State Space Models at Copying"
(section 3), with uniform symbols. A state of fixed size must forget; attention need not.

`length` = symbols in the source. Chance: token accuracy 1/symbols on the symbols, exact match symbols^-length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.tasks.transduction import Transduction


@dataclass(frozen=True, kw_only=True)
class Config(Transduction):
    """Answer: the source itself."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        return source
