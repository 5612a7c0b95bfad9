"""A profile in TensorBoard: one run for each architecture, with the context as the step, and the report's figures."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from matplotlib import image
from torch.utils.tensorboard import SummaryWriter

from experiments.cell import slug
from experiments.profile.analysis import by_series
from experiments.profile.rows import Row
from experiments.tensorboard import OVERVIEW


def write(folder: Path, rows: Sequence[Row]) -> None:
    """Write tb/ anew: memory_MiB, predicted_memory_MiB and tokens_per_second below each mode."""
    shutil.rmtree(folder / "tb", ignore_errors=True)
    for (label, mode, count), members in by_series(rows).items():
        with SummaryWriter(str(folder / "tb" / slug(label))) as writer:
            for row in members:
                for name, value in _scalars(row).items():
                    writer.add_scalar(f"{mode}_x{count}/{name}", value, row.context)
    with SummaryWriter(str(folder / "tb" / OVERVIEW)) as writer:
        for figure in sorted((folder / "figures").glob("*.png")):
            writer.add_image(f"report/{figure.stem}", image.imread(figure), dataformats="HWC")


def _scalars(row: Row) -> dict[str, float]:
    known = {
        "memory_MiB": row.measured_bytes and row.measured_bytes / 2**20,
        "predicted_memory_MiB": row.predicted_bytes and row.predicted_bytes / 2**20,
        "tokens_per_second": row.speed,
    }
    return {name: value for name, value in known.items() if value}
