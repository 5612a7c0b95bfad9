"""The peer mamba_ssm in `archlab bench`: built from its source distribution where it is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench import _mamba_ssm, selective_scan
from experiments.bench._peers import peer

MODULE = "mamba_ssm.ops.selective_scan_interface"


class Pip:
    """Installs a package whose __init__ cannot be imported, as where what its models need is missing; or fails."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.asked: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, command: list[str], env: dict[str, str], **rest: Any) -> subprocess.CompletedProcess[str]:
        self.asked.append((command, env))
        package = Path(command[command.index("--target") + 1]) / "mamba_ssm"
        (package / "ops").mkdir(parents=True)
        (package / "__init__.py").write_text("import no_such_module\n")
        (package / "ops" / "selective_scan_interface.py").write_text("def selective_scan_fn():\n    return 'theirs'\n")
        return subprocess.CompletedProcess(command, int(bool(self.fails)), "", self.fails)


@pytest.fixture(autouse=True)
def on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With nvcc, without the package, and with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(_mamba_ssm.shutil, "which", str)
    monkeypatch.setattr(sys, "path", list(sys.path))
    kept = {name: module for name, module in sys.modules.items() if not name.startswith("mamba_ssm")}
    monkeypatch.setattr(sys, "modules", kept)


def found() -> Any:
    return peer(MODULE, lambda module: module.selective_scan_fn, _mamba_ssm.find)


def test_it_is_built_once_with_the_scan_switched_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pip = Pip()
    monkeypatch.setattr(_mamba_ssm.subprocess, "run", pip)
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


def test_what_cannot_be_built_says_so_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mamba_ssm.subprocess, "run", Pip(fails="a line\nerror: no space left\nmore"))
    assert found() == "cannot run (RuntimeError: not to be built: error: no space left)"
    assert not list((tmp_path / "archlab").iterdir())


def test_without_nvcc_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mamba_ssm.shutil, "which", lambda name: None)
    assert found() == "cannot run (RuntimeError: neither installed nor to be built: no nvcc)"


def test_a_build_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], timeout: float, **rest: Any) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(_mamba_ssm.subprocess, "run", run)
    assert found() == "cannot run (RuntimeError: not to be built within 2 hours)"


def test_on_a_cpu_nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_mamba_ssm.subprocess, "run", None)
    case = selective_scan._case("forward", 1, 2, 3, torch.device("cpu"))
    assert case.peers["mamba_ssm"] == "cannot run (RuntimeError: needs CUDA)"
