"""TensorBoard: serve an experiment's curves on this machine, and write what belongs to no single cell."""

from __future__ import annotations

import re
import shutil
import threading
from pathlib import Path
from typing import Any

from experiments.errors import UserError

OVERVIEW = "_experiment"
"""The run below tb/ that holds the chart layout and the report's figures; no cell's folder starts with _."""
_EVENTS = "events.out.tfevents.*"


def serve(folder: Path, port: int | None = None) -> int:
    """Serve the curves below `folder` on localhost, print the address, and block until interrupted.

    port: None takes 6006 or the next free one; 0 any free one. Raises UserError without events or with a port in use.
    """
    url = launch(folder, port)
    print(f"TensorBoard of {folder} at {url} (Ctrl-C ends it)", flush=True)
    threading.Event().wait()
    return 0


def launch(folder: Path, port: int | None = None) -> str:
    """Start the server in a daemon thread of this process and return its URL. Errors as for `serve`."""
    logs = event_folder(folder)
    flags = _port_flag(port)
    from tensorboard import default, program

    server = program.TensorBoard(default.get_plugins())
    # load_fast=false: the other loader is a process of its own, which would outlive this one if it were killed.
    flags = ["--logdir", str(logs), "--host", "localhost", "--load_fast", "false", *flags]
    server.configure(argv=["tensorboard", *flags])
    try:
        return server.launch()
    except program.TensorBoardServerException as error:
        raise UserError(f"TensorBoard could not start: {error.msg}; choose another --port or leave it out") from error


def _port_flag(port: int | None) -> list[str]:
    if port is not None and not 0 <= port <= 65535:
        raise UserError(f"--port expects a number between 0 and 65535, got {port}")
    return [] if port is None else ["--port", str(port)]


def event_folder(folder: Path) -> Path:
    """The tb/ of an experiment's folder, or the folder itself where several experiments lie below it."""
    logs = folder / "tb" if (folder / "tb").is_dir() else folder
    if next(logs.rglob(_EVENTS), None) is None:
        raise UserError(
            f"{folder} holds no TensorBoard events: expected the --out of an `archlab compare` that has run"
        )
    return logs


def write_overview(folder: Path) -> None:
    """Write the run `_experiment`: one chart per task with every architecture in it, and the report's figures, also
    those of a profile below it.

    Called at the end of a comparison, and safe to call again: it replaces what it wrote before. Needs torch.
    """
    from matplotlib import image
    from torch.utils.tensorboard import SummaryWriter

    place = folder / "tb" / OVERVIEW
    shutil.rmtree(place, ignore_errors=True)
    with SummaryWriter(str(place)) as writer:
        writer.add_custom_scalars(layout(folder))
        for figure in sorted([*folder.glob("figures/*.png"), *folder.glob("profile/figures/*.png")]):
            writer.add_image(f"report/{figure.stem}", image.imread(figure), dataformats="HWC")


def layout(folder: Path) -> dict[str, dict[str, list[Any]]]:
    """Category -> chart -> ["Multiline", [pattern of a tag]]: TensorBoard draws the tag of every run that has it."""
    headlines = {task: _headline(run) for task, run in sorted(_one_run_per_task(folder).items())}
    return {
        "Validation": {f"{task}: {name}": _chart(f"{task}/val/{name}") for task, name in headlines.items()},
        "Training loss": {task: _chart(f"{task}/train/loss") for task in headlines},
    }


def _chart(tag: str) -> list[Any]:
    return ["Multiline", [f"^{re.escape(tag)}$"]]


def _one_run_per_task(folder: Path) -> dict[str, Path]:
    """Events lie at tb/<architecture>/<task>/<seed and rate>/."""
    return {run.parent.name: run for run in (folder / "tb").glob("*/*/*") if any(run.glob(_EVENTS))}


def _headline(run: Path) -> str:
    """Bits per byte where a run has them, else accuracy."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tags = EventAccumulator(str(run)).Reload().Tags()["scalars"]
    return "bits_per_byte" if any(tag.endswith("/val/bits_per_byte") for tag in tags) else "accuracy"
