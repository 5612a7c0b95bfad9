"""Compilation at first use: alone, in a crowd, and where it cannot be."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kernels import build

DRAW = """
import sys
import warnings
import torch
import kernels
assert "kernels.build" not in sys.modules, "to import kernels is to be about to compile"
torch.manual_seed(0)
u, delta, B = torch.randn(2, 40, 70), torch.rand(2, 40, 70), torch.randn(2, 16, 70)
arguments = [t.requires_grad_() for t in (u, delta, -torch.rand(40, 16), B, B.flip(1))]
"""

COMPARE = """
results = {}
for backend in ("cpu", "reference"):
    out, last = kernels.selective_scan(*arguments, return_last_state=True, backend=backend)
    results[backend] = out, last, *torch.autograd.grad(out.sum() + last.sum(), arguments)
torch.testing.assert_close(results["cpu"], results["reference"], rtol=1e-4, atol=1e-4)
"""

NO_COMPILER = """
reason = kernels.backends("selective_scan")["cpu"]
assert "no C++ compiler: install g++" in reason, reason
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    kernels.selective_scan(*arguments)
    kernels.selective_scan(*arguments)
(message,) = [str(w.message) for w in said]
assert message.startswith("selective_scan runs on its slow backend 'chunked': "), message
assert f"cpu: {reason}" in message, message
assert kernels.ran() == {"selective_scan": ["chunked"]}
try:
    kernels.selective_scan(*arguments, backend="cpu")
except ValueError as error:
    assert reason in str(error)
else:
    raise AssertionError("a backend that cannot run has run")
"""


def start(script: str, **environment: str) -> subprocess.Popen[str]:
    """A fresh process, warnings being errors."""
    command = [sys.executable, "-W", "error", "-c", DRAW + script]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)


def assert_done(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors


def test_processes_that_start_cold_together(tmp_path: Path) -> None:
    processes = [start(COMPARE, XDG_CACHE_HOME=str(tmp_path)) for _ in range(2)]
    for process in processes:
        assert_done(process)
    assert [file.suffix for file in (tmp_path / "archlab").iterdir()] == [".so"]


def test_where_malloc_hands_out_garbage() -> None:
    assert_done(start(COMPARE, MALLOC_PERTURB_="1"))  # glibc's; fills what the C++ scratch memory is made of


def test_without_a_compiler(tmp_path: Path) -> None:
    assert_done(start(NO_COMPILER, XDG_CACHE_HOME=str(tmp_path), PATH=str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library in a folder of its own, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "operation" / "answer.cpp"
    file.parent.mkdir()
    file.write_text('#include "number.h"\nextern "C" int answer() { return NUMBER + ADDED; }\n')
    (file.parent / "number.h").write_text("#define NUMBER 40\n")
    return file


def built(source: Path, *defines: str) -> int:
    build.attempt.cache_clear()
    library = build.attempt(source, *defines)
    assert not isinstance(library, build.BuildError), library
    return library.answer()


def libraries() -> int:
    return len(list(build.cache_folder().glob("operation-answer-*.so")))


def test_builds_once_per_source_header_and_define(source: Path) -> None:
    assert [built(source, "ADDED=2"), built(source, "ADDED=2")] == [42, 42]
    assert libraries() == 1
    assert built(source, "ADDED=3") == 43
    (source.parent / "number.h").write_text("#define NUMBER 50\n")
    assert built(source, "ADDED=2") == 52
    assert libraries() == 3


def test_another_torch_or_processor_builds_again(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built(source, "ADDED=0")
    monkeypatch.setattr("torch.__version__", "0.0")
    built(source, "ADDED=0")
    monkeypatch.setattr(build, "_processor", lambda: "another")
    built(source, "ADDED=0")
    assert libraries() == 3


def test_a_source_that_does_not_compile(source: Path) -> None:
    source.write_text("nonsense\n")
    failed = build.attempt(source)
    assert isinstance(failed, build.BuildError)
    assert "could not compile answer.cpp" in str(failed)
    assert "error" in str(failed)
    assert list(build.cache_folder().iterdir()) == []


def test_a_cache_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(source))
    failed = build.attempt(source)
    assert isinstance(failed, build.BuildError)
    assert "set XDG_CACHE_HOME to a folder that is" in str(failed)


def test_the_cache_is_in_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.cache_folder() == tmp_path / ".cache" / "archlab"
