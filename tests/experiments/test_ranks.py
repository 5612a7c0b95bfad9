"""The other processes of a cell on several devices: none outlives it, and none is waited for in vain."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from toy_cell import cell

from experiments import ranks


@pytest.fixture
def sleepers(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """The ranks that `joined` starts: each sleeps for a minute."""
    started: list[subprocess.Popen[str]] = []

    def start(task: dict[str, Any], place: dict[str, str]) -> subprocess.Popen[str]:
        started.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], text=True))
        return started[-1]

    monkeypatch.setattr(ranks, "_start", start)
    return started


def test_after_an_exception_nobody_is_waited_for(sleepers: list[subprocess.Popen[str]], tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(MemoryError), ranks.joined(cell(train={"devices": 4}), tmp_path, 1.0):
        raise MemoryError
    assert time.monotonic() - begun < 10
    assert [rank.returncode for rank in sleepers] == [-9] * 3
    assert "LOCAL_RANK" not in os.environ


def test_all_others_together_have_their_time_to_end(
    sleepers: list[subprocess.Popen[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "GRACE", 0.5)
    begun = time.monotonic()
    with ranks.joined(cell(train={"devices": 8}), tmp_path, 1.0):
        pass
    assert time.monotonic() - begun < 3
    assert len(sleepers) == 7
