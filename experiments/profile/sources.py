"""Digest of the sources that decide what a point's record holds: whether it is of today's."""

from __future__ import annotations

import hashlib
from pathlib import Path

from experiments.provenance import ROOT

COMPUTING = ("account", "config", "measure", "operations", "point", "predict", "scratch", "subject", "tracker")
"""The files of this package that compute; the others plan, show or tell."""
SHARED = ("archs/contract.py", "archs/attention.py", "experiments/loss.py", "experiments/measure.py")


def digest(arch: str) -> str:
    """Of one architecture: its file and what it stands on, all kernels, and what measures.

    arch: name, or path of a user's own file.
    """
    own = Path(arch).expanduser() if arch.endswith(".py") else ROOT / "archs" / f"{arch}.py"
    here = [Path(__file__).with_name(f"{name}.py") for name in COMPUTING]
    kernels = sorted(path for path in (ROOT / "kernels").rglob("*") if path.suffix in {".py", ".cpp", ".h", ".cu"})
    total = hashlib.sha256()
    for path in [own, *here, *(ROOT / name for name in SHARED), *kernels]:
        total.update(path.read_bytes() if path.is_file() else b"absent")
    return total.hexdigest()[:16]
