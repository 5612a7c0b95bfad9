"""One cell on several devices: a process for each, joined by Lightning's strategy.

Lightning would start them by running the command that runs now once more; a cell is no command. So they are started
here, and Lightning finds its place among them in the environment. Rank 0 is the cell's own process.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from experiments.cell import Cell

GRACE = 30.0
"""Seconds that the others have to end after rank 0 has."""
DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@contextmanager
def joined(cell: Cell, folder: Path, checkpoint_every: float) -> Iterator[None]:
    """Within, the cell's other ranks train beside this process; nothing happens for one device, or in such a rank."""
    if cell.train.devices == 1 or "LOCAL_RANK" in os.environ:
        yield
        return
    # Of the cell's threads, each rank has its share.
    threads = torch.get_num_threads()
    share = max(1, threads // cell.train.devices)
    task = {"cell": cell.to_json(), "folder": str(folder), "every": checkpoint_every, "threads": share}
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port()), "NODE_RANK": "0"}
    ranks = [_start(task, {**place, "LOCAL_RANK": str(rank)}) for rank in range(1, cell.train.devices)]
    before = dict(os.environ)
    os.environ.update(place, LOCAL_RANK="0")
    torch.set_num_threads(share)
    try:
        yield
    except BaseException:
        # The others wait for this one, and would wait for ever.
        _end(ranks, grace=0.0)
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        _end(ranks, GRACE)
        torch.set_num_threads(threads)
        for name in {*place, "LOCAL_RANK"} - set(before):
            del os.environ[name]


def _start(task: dict[str, Any], place: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "experiments.ranks"]
    rank = subprocess.Popen(command, env={**os.environ, **place}, stdin=subprocess.PIPE, text=True)
    assert rank.stdin is not None
    rank.stdin.write(json.dumps(task))
    rank.stdin.close()
    return rank


def _end(ranks: list[subprocess.Popen[str]], grace: float) -> None:
    deadline = time.monotonic() + grace
    for rank in ranks:
        with suppress(subprocess.TimeoutExpired):
            rank.wait(max(0.0, deadline - time.monotonic()))
        rank.kill()
        rank.wait()


def main() -> None:
    """Train as one of the other ranks; what there is to tell is rank 0's to tell."""
    # Imported here: training imports this module.
    from experiments.training import train

    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(DIES_WITH_PARENT, signal.SIGKILL)
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    train(Cell.from_json(task["cell"]), Path(task["folder"]), lambda progress: None, task["every"])


if __name__ == "__main__":
    main()
