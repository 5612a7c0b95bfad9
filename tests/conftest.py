"""What all tests share: one thread, no display, reproducible properties, and the command as users run it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

# Before torch is imported here or in a child: small tests gain nothing from threads and share the machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from hypothesis import settings

from kernels import native

Archlab = Callable[..., subprocess.CompletedProcess[str]]

torch.set_num_threads(1)
native.WORK_PER_THREAD = 2**14  # the small cases of the kernels run on as many threads as large ones
# A shell's background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("archlab", deadline=None, derandomize=True, max_examples=25)
settings.load_profile("archlab")


@pytest.fixture(scope="session")
def command() -> Path:
    """The installed command `archlab` of the running environment."""
    path = Path(sys.executable).with_name("archlab")
    assert path.is_file(), f"no command at {path}: install with pip install --editable '.[dev]'"
    return path


@pytest.fixture(scope="session")
def archlab(command: Path) -> Archlab:
    """Run `archlab WORDS...` to its end, with variables added to the environment; no terminal, no exception."""

    def run(
        *words: str | Path, cwd: Path | None = None, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(command), *map(str, words)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            timeout=timeout,
            env=os.environ | environment,
        )

    return run
