"""The peer mamba_ssm in `archlab bench`: built from its source distribution where it is not installed."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import cpp_extension

from experiments.bench import _mamba_ssm, selective_scan
from experiments.bench._peers import peer

MODULE = "mamba_ssm.ops.selective_scan_interface"


class Pip:
    """Installs a package whose __init__ cannot be imported, as where what its models need is missing; or fails."""

    def __init__(self, fails: str | None = None) -> None:
        self.fails = fails
        self.asked: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
        self.asked.append((command, environment))
        package = Path(command[command.index("--target") + 1]) / "mamba_ssm"
        (package / "ops").mkdir(parents=True)
        (package / "__init__.py").write_text("import no_such_module\n")
        (package / "ops" / "selective_scan_interface.py").write_text("def selective_scan_fn():\n    return 'theirs'\n")
        return int(self.fails is not None), self.fails or ""


@pytest.fixture(autouse=True)
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nvcc, without the package, and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_mamba_ssm, "_has_nvcc", lambda: True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {name: module for name, module in sys.modules.items() if not name.startswith("mamba_ssm")}
    monkeypatch.setattr(sys, "modules", kept)


def found() -> Any:
    return peer(MODULE, lambda module: module.selective_scan_fn, _mamba_ssm.find)


def test_it_is_built_once_with_the_scan_switched_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip()
    monkeypatch.setattr(_mamba_ssm, "_run", pip)
    assert found()() == "theirs"
    ((command, environment),) = pip.asked
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert {"--no-deps", "--no-build-isolation", "--no-binary"} < set(command)
    assert environment["MAMBA_FORCE_BUILD"] == environment["MAMBA_KEEP_CUDA_BUILD"] == "TRUE"
    assert "once" in capsys.readouterr().err
    for name in [name for name in sys.modules if name.startswith("mamba_ssm")]:
        del sys.modules[name]
    assert found()() == "theirs"
    assert len(pip.asked) == 1


COMPILER = """
  error: subprocess-exited-with-error
    Building wheel for mamba-ssm (pyproject.toml) did not run successfully.
    exit code: 1
      [3 lines of output]
      FAILED: [code=1] selective_scan.o
      a/long/path/ATen.h:5:2: error: #error C++20 is required
      subprocess.CalledProcessError: Command '['ninja', '-v']' returned non-zero exit status 1.
      [end of output]
  ERROR: Failed building wheel for mamba-ssm
"""
SETUP = """
  error: subprocess-exited-with-error
      Traceback (most recent call last):
          raise RuntimeError(CUDA_MISMATCH_MESSAGE, cuda_str_version, torch.version.cuda)
      RuntimeError: The detected CUDA version (12.4) mismatches
ERROR: Failed to build installable wheels
"""


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("a line\nerror: no space left\nmore", "error: no space left"),
        (COMPILER, "error: #error C++20 is required"),
        (SETUP, "RuntimeError: The detected CUDA version (12.4) mismatches"),
        ("WARNING: slow\nERROR: No matching distribution found", "ERROR: No matching distribution found"),
        ("a/long/path/bin/python: No module named pip", "No module named pip"),
        ("", "status 1"),
    ],
)
def test_what_cannot_be_built_says_so_and_leaves_nothing(
    said: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mamba_ssm, "_run", Pip(fails=said))
    assert found() == f"cannot run (RuntimeError: not to be built: {reason})"
    assert not list((tmp_path / "archlab").iterdir())


def test_without_nvcc_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mamba_ssm, "_has_nvcc", lambda: False)
    assert found() == "cannot run (RuntimeError: neither installed nor to be built: no nvcc)"


def test_nvcc_is_looked_for_where_torch_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", None)
    assert not _mamba_ssm._has_nvcc()
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", str(tmp_path))
    assert not _mamba_ssm._has_nvcc()
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch(mode=0o755)
    assert _mamba_ssm._has_nvcc()


def test_a_build_that_takes_too_long_is_given_up_with_its_compilers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would disturb what is measured then."""
    pip = tmp_path / "pip"
    beats = tmp_path / "beats"
    pip.write_text(f"#!/bin/sh\n(for _ in $(seq 600); do echo >> {beats}; sleep 0.1; done) & wait\n")
    pip.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(pip))
    monkeypatch.setattr(_mamba_ssm, "HOURS", 2 / 3600)
    assert found() == "cannot run (RuntimeError: not to be built within 0.000555556 hours)"
    time.sleep(1)
    written = beats.stat().st_size
    time.sleep(1)
    assert beats.stat().st_size == written > 0


def test_on_a_cpu_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_mamba_ssm, "_run", None)
    case = selective_scan._case("forward", 1, 2, 3, torch.device("cpu"))
    assert case.peers["mamba_ssm"] == "cannot run (RuntimeError: needs CUDA)"
