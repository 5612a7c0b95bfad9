"""The CUDA kernels, compiled: registers, spills and instructions per state are kept, without a GPU.

ARCHLAB_EVERY_SPECIALISATION=1 pytest tests/kernels/test_cuda_compilation.py     more of them, for more GPUs: minutes
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest
import sass
import torch

import kernels
from kernels import cuda_driver, nvrtc
from kernels.selective_scan._cuda_problem import DTYPES, Specialisation, backward_threads, power_of_two

SOURCE = Path(kernels.__file__).parent / "selective_scan" / "cuda.cu"
ARCHITECTURES = ("80", "86", "89", "90", "100", "120")
REGISTERS = 64 * 1024  # of a multiprocessor
MOST_SPILLED = 288  # bytes of a thread
# Instructions of the hot loop per state and step, at most. (lanes, twins) -> kernel -> at most, of Mamba's 16 states
FORWARD = {
    (8, 2): {"scan_forward": 10.8, "scan_ends": 8.0},
    (8, 1): {"scan_forward": 11.0, "scan_ends": 8.6},
    (16, 1): {"scan_forward": 11.5, "scan_ends": 9.2},
    (32, 1): {"scan_forward": 12.0, "scan_ends": 9.8},
}
BACKWARD = {"scan_backward": 25.4, "scan_ends_reverse": 6.2}
STATES = (1, 4, 8, 16, 32, 64, 128, 256)


def forward(
    dtype: torch.dtype, states: int, lanes: int, twins: int, across: bool = False, constant: bool = False
) -> Specialisation:
    """With 16 channels a block, or fewer where shared memory would not do."""
    return Specialisation(dtype, states, lanes, twins, 16 // twins * lanes, False, across, constant, constant)


def backward(
    dtype: torch.dtype, states: int, across: bool = False, constant: bool = False, threads: int | None = None
) -> Specialisation:
    lanes = min(32, power_of_two(-(-states // 4)))
    threads = threads or backward_threads(states, lanes)
    return Specialisation(dtype, states, lanes, 1, threads, True, across, constant, constant)


FEW = [  # for one GPU, and Mamba's backward pass for all
    forward(torch.bfloat16, 16, 8, 2),
    forward(torch.bfloat16, 16, 32, 1, across=True),
    backward(torch.bfloat16, 16),
    backward(torch.float32, 16, across=True),
]
EVERY = [
    *(
        forward(dtype, 16, lanes, twins, across)
        for dtype in DTYPES
        for lanes, twins in FORWARD
        for across in (False, True)
    ),
    *(backward(dtype, 16, across) for dtype in DTYPES for across in (False, True)),
    *(forward(torch.bfloat16, states, 8, 2) for states in STATES),
    *(forward(torch.bfloat16, states, 16, 1, across=True) for states in STATES),
    *(backward(torch.bfloat16, states) for states in STATES),
    *(forward(torch.float16, states, 8, 2, constant=True) for states in (5, 16, 64, 200)),
    *(backward(torch.float16, states, constant=True) for states in (5, 16, 64, 200)),
    *(backward(torch.float32, states, threads=32) for states in (4, 16, 128)),
]


def label(one: Specialisation) -> str:
    way = "backward" if one.backward else "forward"
    dtype, threads = str(one.dtype).removeprefix("torch."), f"{one.threads} threads"
    options = "-across" * one.across + "-constant" * one.constant_B
    return f"{dtype}-{one.states}-{one.lanes}x{one.twins}-{threads}-{way}{options}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "built" in metafunc.fixturenames:
        if os.environ.get("ARCHLAB_EVERY_SPECIALISATION") == "1":
            jobs = [(one, arch) for one in dict.fromkeys(EVERY) for arch in ARCHITECTURES]
        else:
            mamba = backward(torch.bfloat16, 16)
            jobs = [(one, "90") for one in FEW] + [(mamba, arch) for arch in ARCHITECTURES if arch != "90"]
        metafunc.parametrize("built", jobs, ids=lambda job: f"{label(job[0])}-sm_{job[1]}", indirect=True)


@pytest.fixture
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Specialisation, Callable[[str], str]]:
    """A specialisation, and what cuobjdump says of its machine code, asked with an option."""
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump to look into machine code with (Triton's wheel carries one)")
    one, arch = request.param
    path = _compiled(one, arch, tmp_path_factory.getbasetemp())
    search = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}

    def say(option: str) -> str:
        return subprocess.run([tool, option, path], capture_output=True, text=True, env=search, check=True).stdout

    return one, say


def _cuobjdump() -> Path | None:
    beside = Path(sysconfig.get_paths()["purelib"]) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = shutil.which("cuobjdump") or (beside if os.access(beside, os.X_OK) else None)
    return None if found is None else Path(found)


@functools.cache
def _compiled(one: Specialisation, arch: str, folder: Path) -> Path:
    """By nvcc where it is present, else by NVRTC."""
    path = folder / f"{label(one)}-{arch}.cubin"
    if shutil.which("nvcc") is not None:
        defines = [f"-D{name}={value}" for name, value in one.defines.items()]
        command = ["nvcc", "-cubin", f"-arch=sm_{arch}", "-std=c++17", *defines, str(SOURCE)]
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path
    with pytest.MonkeyPatch.context() as cache:
        cache.setenv("XDG_CACHE_HOME", str(folder))
        try:
            path.write_bytes(nvrtc.compiled(SOURCE, one.defines, (int(arch[:-1]), int(arch[-1]))))
        except nvrtc.NvrtcError as error:
            if "no NVRTC" in str(error):
                pytest.skip(str(error))
            raise
    return path


def test_few_registers_and_no_spills_where_time_is_spent(built: tuple[Specialisation, Callable[[str], str]]) -> None:
    """What is spilled, if anything, is a few numbers that mostly lie still through the hot loop."""
    one, say = built
    usage = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", say("--dump-resource-usage"))
    assert len(usage) == (4 if one.backward else 3)
    for kernel, registers, stack, local in usage:
        assert (kernel, local) == (kernel, "0")
        assert int(registers) <= min(255, REGISTERS // (one.blocks * one.threads))
        assert int(stack) <= MOST_SPILLED, kernel
    if one.states < 4 or one.constant_B:  # whose loops are not told apart from those that stage
        return
    functions = sass.functions(say("-sass"))
    for kernel in ("scan_backward",) if one.backward else ("scan_forward", "scan_ends"):
        spilled = [one.name for one in sass.hot_loop(functions[kernel]) if one.name.startswith(("LDL", "STL"))]
        assert len(spilled) <= 8, kernel  # of some 800


def test_instructions_per_state(built: tuple[Specialisation, Callable[[str], str]]) -> None:
    one, say = built
    if one.states != 16 or one.constant_B or one.threads < 64:
        pytest.skip("kept as numbers for Mamba's states alone")
    functions = sass.functions(say("-sass"))
    for kernel, most in (BACKWARD if one.backward else FORWARD[one.lanes, one.twins]).items():
        loop = sass.hot_loop(functions[kernel])
        assert len(loop) / sass.exponentials(loop) <= most, (kernel, sass.histogram(loop))


def test_shared_memory_fits_every_gpu() -> None:
    """99 KiB is the least that a block may have on the GPUs since compute capability 8.0."""
    for one in EVERY:
        assert max(one.shared_bytes.values()) <= 99 * 1024, label(one)


def test_nvrtc_compiles_into_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        nvrtc.library()
    except nvrtc.NvrtcError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    one = forward(torch.bfloat16, 4, 8, 1)
    image = nvrtc.compiled(SOURCE, one.defines, (9, 0))
    (kept,) = tmp_path.glob("archlab/*")
    assert kept.read_bytes() == image
    assert image.startswith(b"\x7fELF")
    kept.write_bytes(b"from the cache")
    assert nvrtc.compiled(SOURCE, one.defines, (9, 0)) == b"from the cache"
    with pytest.raises(nvrtc.NvrtcError, match="could not compile"):
        nvrtc.compiled(SOURCE, {}, (9, 0))
    assert len(list(tmp_path.glob("archlab/*"))) == 1


def test_without_nvrtc_the_reason_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_candidates", lambda major: [])
    nvrtc.library.cache_clear()
    with pytest.raises(nvrtc.NvrtcError, match="pip install"):
        nvrtc.library()


@pytest.mark.skipif(sys.platform == "win32", reason="libraries have other names")
def test_nvrtc_is_taken_with_its_builtins_and_not_its_alternative_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As they lie in the wheel that torch's builds for CUDA 13.0 bring: neither finds its builtins by itself."""
    folder = tmp_path / "cu13" / "lib"
    folder.mkdir(parents=True)
    names = ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13", "libnvrtc-builtins.alt.so.13.0", "libnvrtc.alt.so.13"]
    for name in names:
        (folder / name).touch()
    loaded: list[str] = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Mock(submodule_search_locations=[str(tmp_path)]))
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", lambda path: loaded.append(Path(path).name))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    nvrtc.library.cache_clear()
    nvrtc.library()
    nvrtc.library.cache_clear()
    assert loaded == names[:2]


@pytest.mark.parametrize(("driver", "why"), [(None, "no NVRTC 13 to compile with: install it"), ("gone", "driver")])
def test_a_gpu_without_what_it_needs_says_what(driver: str | None, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `archlab doctor` shows it."""

    def load() -> None:
        if driver:
            raise cuda_driver.DriverError("the NVIDIA driver's libcuda.so.1 cannot be loaded: install the driver")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(cuda_driver, "_driver", load)
    monkeypatch.setattr(nvrtc, "_candidates", lambda major: [])
    nvrtc.library.cache_clear()
    said = kernels.backends("selective_scan", torch.bfloat16, "cuda")["cuda"]
    nvrtc.library.cache_clear()
    assert said is not None
    assert why in said
