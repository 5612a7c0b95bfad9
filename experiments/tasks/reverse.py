"""String reversal: `a b c` -> `c b a`.

Source: `reverse_string` of Deletang et al. 2023, "Neural Networks and the Chomsky Hierarchy" (section 4, there with
two symbols). The task on which a fixed context vector visibly collapses with length while additive attention holds,
as in Bahdanau et al. 2015, Fig. 2.

`length` = symbols in the source. Chance: token accuracy 1/symbols on the symbols, exact match symbols^-length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from experiments.tasks.transduction import Transduction


@dataclass(frozen=True, kw_only=True)
class Config(Transduction):
    """Answer: the source, last symbol first."""

    def answer(self, source: np.ndarray) -> np.ndarray:
        return source[:, ::-1]
