"""The CUDA kernels of the selective scan on the CPU: compiled by g++ and run under cuda_emulation.h."""

from __future__ import annotations

import atexit
import ctypes
import functools
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import kernels
from kernels.selective_scan._cuda_problem import Problem, Specialisation

_HERE = Path(__file__).parent
FAILURES = ("", "threads did not meet at a barrier", "shared memory overrun", "misaligned address")
SOURCES = Path(kernels.__file__).parent / "selective_scan"


@functools.cache
def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="archlab-emulation-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def _sources(without: str) -> Path:
    if not without:
        return SOURCES
    folder = _folder() / "".join(filter(str.isalpha, without))
    folder.mkdir()
    for file in SOURCES.glob("*.cu*"):
        (folder / file.name).write_text(file.read_text().replace(f"{without};", ";"))
    return folder


@functools.cache
def library(specialisation: Specialisation, without: str = "") -> ctypes.CDLL:
    """The emulated module; `without` a barrier, wherever it stands in the sources."""
    defines = [f"-D{name}={value}" for name, value in specialisation.defines.items()]
    name = "-".join([*map(str, specialisation.defines.values()), *filter(str.isalpha, without)])
    path = _folder() / f"{name}.so"
    warnings = ["-Wall", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-variable"]
    flags = ["-O1", "-march=native", "-std=gnu++17", "-shared", "-fPIC", *warnings, *defines, f"-I{_sources(without)}"]
    command = ["g++", *flags, str(_HERE / "cuda_emulation.cpp"), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    built = ctypes.CDLL(str(path))
    assert built.size_of_problem() == Problem.SIZE
    return built


@dataclass
class Emulation:
    """A machine (see kernels.cuda_driver.Machine) of so many processors; threads run in order or backwards.

    without: a barrier to leave out.
    """

    backwards: bool = False
    count: int = 1
    without: str = ""

    def __post_init__(self) -> None:
        self.launched: list[tuple[str, Specialisation, int]] = []

    def processors(self, device: torch.device) -> int:
        return self.count

    def launch(
        self, specialisation: Specialisation, kernel: str, blocks: int, problem: bytes, device: torch.device
    ) -> None:
        self.launched.append((kernel, specialisation, blocks))
        built = library(specialisation, self.without)
        shared = specialisation.shared_bytes[kernel]
        function = ctypes.cast(built[kernel], ctypes.c_void_p)
        sizes = ctypes.c_long(blocks), ctypes.c_long(shared)
        status = built.emulate(function, ctypes.c_char_p(problem), *sizes, ctypes.c_int(self.backwards))
        assert status == 0, f"{kernel}: {FAILURES[status]}"
