"""Everything that trains, measures and reports.

experiments.compare(archs=["gqa", "mamba"], tasks=["recall"], seeds=3, out="runs/mine")

runs a comparison, as the command `archlab compare` does; see `experiments.compare.run`.
"""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """Import what a comparison needs when it is asked for."""
    if name == "compare":
        return importlib.import_module("experiments.compare")
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
