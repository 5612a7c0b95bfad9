"""A cell that is killed, at any moment and several times, ends as if nothing had happened."""

from __future__ import annotations

import errno
import itertools
import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from toy_cell import cell, ignore

from experiments.cell import Cell
from experiments.checkpoint import KillSafe
from experiments.training import train

CONTEXT = multiprocessing.get_context("forkserver")
KILLS = 3
TIMES = {"seconds", "tokens_per_second"}
LONG = {"steps": 150, "val_every": 22}
"""So many that a fast machine is still at it when it is killed."""


def child(cell_json: dict[str, Any], folder: Path, every: float) -> None:
    """Train in a process of its own and leave the result."""
    torch.set_num_threads(1)
    result = train(Cell.from_json(cell_json), folder, ignore, checkpoint_every=every)
    (folder / "result.json").write_text(json.dumps(result))


def start(toy: Cell, folder: Path, every: float) -> BaseProcess:
    CONTEXT.set_forkserver_preload(["experiments.training"])
    (folder / "cells").mkdir(parents=True, exist_ok=True)
    process = CONTEXT.Process(target=child, args=(toy.to_json(), folder, every))
    process.start()
    return process


def checkpoint(toy: Cell, folder: Path) -> Path:
    return folder / "cells" / f"{toy.key}.ckpt"


def kill_somewhere(toy: Cell, folder: Path, moment: random.Random) -> int | None:
    """Start, wait for a checkpoint newer than the last one and a random moment more, kill. Returns the exit code."""
    path = checkpoint(toy, folder)
    before = path.stat().st_mtime_ns if path.exists() else 0
    process = start(toy, folder, every=0.0 if moment.random() < 0.5 else 0.1)
    while process.is_alive() and not (path.exists() and path.stat().st_mtime_ns > before):
        time.sleep(0.002)
    time.sleep(moment.uniform(0.0, 0.15))
    if process.is_alive():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    return process.exitcode


def finish(toy: Cell, folder: Path, every: float = 0.0) -> None:
    process = start(toy, folder, every)
    process.join(120)
    assert process.exitcode == 0


def untimed(value: Any) -> Any:
    """The same without what a clock decides."""
    if isinstance(value, dict):
        return {key: untimed(item) for key, item in value.items() if key not in TIMES}
    return [untimed(item) for item in value] if isinstance(value, list | tuple) else value


def assert_same(left: Any, right: Any) -> None:
    """Equal bit for bit, tensors included."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right)
    elif isinstance(left, dict):
        assert left.keys() == right.keys()
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert left == right


def load(toy: Cell, folder: Path) -> dict[str, Any]:
    return untimed(torch.load(checkpoint(toy, folder), weights_only=True))


def test_killed_runs_end_bit_for_bit_like_an_uninterrupted_one(tmp_path: Path) -> None:
    toy = cell(train=LONG)
    finish(toy, tmp_path / "whole", every=60.0)
    moment = random.Random(0)
    codes = [kill_somewhere(toy, tmp_path / "killed", moment) for _ in range(KILLS)]
    assert codes.count(-signal.SIGKILL) >= KILLS - 1, codes
    finish(toy, tmp_path / "killed")
    whole, killed = load(toy, tmp_path / "whole"), load(toy, tmp_path / "killed")
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step"):
        assert_same(whole[part], killed[part])
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("whole", "killed")]
    assert untimed(results[0]) == untimed(results[1])
    assert [point["step"] for point in results[1]["quality"]["curve"]] == [*range(22, 150, 22), 150]


class Crash(BaseException):
    """Ends a run at a chosen moment without a process of its own."""


def crash_at(call: int) -> Callable[[dict[str, Any]], None]:
    """A report that ends the run when it is called for the given time."""
    calls = itertools.count()

    def report(progress: dict[str, Any]) -> None:
        if next(calls) == call:
            raise Crash

    return report


def crashed(toy: Cell, folder: Path, call: int) -> dict[str, Any]:
    """The result of a run that ended at the given report and was run again."""
    (folder / "cells").mkdir(parents=True)
    with pytest.raises(Crash):
        train(toy, folder, crash_at(call), checkpoint_every=0.0)
    return train(toy, folder, ignore, checkpoint_every=0.0)


def whole(toy: Cell, folder: Path) -> dict[str, Any]:
    (folder / "cells").mkdir(parents=True)
    return train(toy, folder, ignore, checkpoint_every=0.0)


def test_every_moment_to_resume_from(tmp_path: Path) -> None:
    """Before, at and after each validation, during the last evaluation, and in the test phase."""
    toy = cell(train={"steps": 5, "val_every": 2})
    expected = untimed(whole(toy, tmp_path / "whole"))
    reports = 5 + 3 + 1
    for call in range(reports):
        assert untimed(crashed(toy, tmp_path / str(call), call)) == expected, call


def test_a_run_that_had_stopped_early_trains_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.callbacks.SOLVED", 0.0)
    toy = cell(train={"steps": 40, "val_every": 2})
    result = crashed(toy, tmp_path, 4 + 2)
    assert result["quality"]["steps"] == 4
    assert result["quality"]["steps_to_solve"] == 2
    assert len(result["quality"]["curve"]) == 2


@pytest.mark.parametrize("damage", ["truncated", "empty", "foreign"])
def test_a_corrupt_checkpoint_is_set_aside_and_training_starts_over(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    toy = cell(train={"steps": 3, "val_every": 2})
    expected = untimed(whole(toy, tmp_path))
    path = checkpoint(toy, tmp_path)
    content = {"truncated": path.read_bytes()[:-100], "empty": b"", "foreign": b"no checkpoint at all"}[damage]
    path.write_bytes(content)
    assert untimed(train(toy, tmp_path, ignore)) == expected
    assert path.with_name(f"{path.name}.corrupt").read_bytes() == content
    assert "training starts over" in caplog.text


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_checkpoint_that_memory_does_not_suffice_for_is_kept(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.ckpt"
    path.write_bytes(b"as good as any")

    def load(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        KillSafe(path, sources="", val_every=1, every=1.0).usable()
    assert [file.name for file in tmp_path.iterdir()] == ["x.ckpt"]


def test_a_checkpoint_of_other_sources_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    toy = cell(train={"steps": 3, "val_every": 2})
    whole(toy, tmp_path)
    assert KillSafe(checkpoint(toy, tmp_path), sources="other", val_every=1, every=1.0).usable() is None
    assert checkpoint(toy, tmp_path).with_name(f"{toy.key}.ckpt.stale").exists()
    assert "other sources" in caplog.text


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = cell(train={"steps": 6, "val_every": 2})
    (tmp_path / "cells").mkdir()
    honest, calls = lightning.Trainer.save_checkpoint, itertools.count(1)

    def save(trainer: lightning.Trainer, path: Path, *args: Any, **options: Any) -> None:
        if next(calls) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(trainer, path, *args, **options)

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", save)
    with pytest.raises(OSError, match="No space left"):
        train(toy, tmp_path, ignore, checkpoint_every=0.0)
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{toy.key}.ckpt"]
    assert load(toy, tmp_path)["global_step"] == 3


def test_a_resumed_run_shows_each_point_once_in_tensorboard(tmp_path: Path) -> None:
    toy = cell(train={"steps": 6, "val_every": 2})
    crashed(toy, tmp_path, 6)
    accumulator = EventAccumulator(str(tmp_path / "tb" / toy.folder_name)).Reload()
    assert [event.step for event in accumulator.Scalars("reverse/val/loss")] == [2, 4, 6]
