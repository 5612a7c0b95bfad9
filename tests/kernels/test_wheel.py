"""What is installed by pip has all that a GPU's user needs: neither nvcc nor g++ is asked for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kernels import nvrtc

ELF = b"\x7fELF"  # how machine code begins
HOUSE = Path(__file__).resolve().parents[2]
PACKED = ("archs", "experiments", "kernels", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The contents of the wheel, built as pip builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    source, wheels = folder / "source", folder / "wheels"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (HOUSE / name).is_dir() else shutil.copy
        copy(HOUSE / name, source / name)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(wheels)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True, timeout=120)
    (wheel,) = wheels.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "installed")
    return folder / "installed"


def run(installed: Path, code: str, **environment: str) -> str:
    """What the code prints, of the installed packages, where no compiler is found."""
    alone = {"PATH": "", "PYTHONPATH": str(installed), "HOME": str(installed), "XDG_CACHE_HOME": str(installed)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=installed,
        env={**os.environ, **alone, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_source_of_a_kernel_is_in_the_wheel(installed: Path) -> None:
    def files(house: Path) -> set[Path]:
        found = {path for path in (house / "kernels").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        return {path.relative_to(house) for path in found}

    assert files(installed) == files(HOUSE)
    assert {".cu", ".cuh", ".cpp", ".h", ".py"} == {path.suffix for path in files(installed)}


def test_its_cuda_kernels_compile_without_a_compiler(installed: Path) -> None:
    """But for NVRTC, which comes with torch's CUDA builds."""
    try:
        nvrtc.library()
    except nvrtc.NvrtcError as error:
        pytest.skip(str(error))
    code = """
import shutil, torch
from pathlib import Path
from kernels import nvrtc
from kernels.selective_scan import cuda
from kernels.selective_scan._cuda_problem import Specialisation
assert shutil.which("nvcc") is None and shutil.which("g++") is None
one = Specialisation(torch.bfloat16, 16, 8, 2, 64, False, False, False, False)
print(nvrtc.compiled(cuda.machine._source, one.defines, (9, 0))[:4])
"""
    assert run(installed, code) == f"{ELF}\n"


def test_a_cpu_without_a_compiler_still_computes_and_says_why_slowly(installed: Path) -> None:
    code = """
import kernels, torch
u = torch.ones(1, 2, 3)
kernels.selective_scan(u, u, -torch.ones(2, 4), torch.ones(1, 4, 3), torch.ones(1, 4, 3))
print(kernels.__file__, kernels.ran(), kernels.backends("selective_scan", torch.float32, "cpu")["cpu"])
"""
    said = run(installed, code)
    assert said.startswith(str(installed))
    assert "chunked" in said
    assert "install g++" in said
