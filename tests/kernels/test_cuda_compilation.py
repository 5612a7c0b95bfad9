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
FORWARD = 8.0  # instructions in the hot loop per state and step, at most, on any number of lanes (of 4 states or more)
# The same where it is less, or of other kernels. (lanes, backward) -> kernel -> at most
INSTRUCTIONS = {
    (1, False): {"scan_forward": 6.0, "scan_ends": 4.7},
    (2, False): {"scan_forward": 6.8},
    (4, False): {"scan_forward": 7.7, "scan_ends": 5.8},
    (4, True): {"scan_backward": 30.0, "scan_ends_reverse": 5.8},
}
STATES = (1, 4, 8, 16, 32, 64, 128, 256)


def module(
    dtype: torch.dtype, states: int, lanes: int, backward: bool, constant: bool = False, threads: int | None = None
) -> Specialisation:
    threads = threads or (backward_threads(states, lanes) if backward else 128)
    return Specialisation(dtype, states, lanes, threads, backward, constant, constant)


def most_lanes(states: int) -> int:
    return min(32, power_of_two(-(-states // 4)))


FEW = [  # for one GPU, and Mamba's backward pass for all
    module(torch.bfloat16, 16, 1, False),
    module(torch.bfloat16, 16, 4, False),
    module(torch.bfloat16, 16, 4, True),
    module(torch.float32, 16, 4, True),
]
EVERY = [
    *(module(dtype, 16, lanes, False) for dtype in DTYPES for lanes in (1, 2, 4)),
    *(module(dtype, 16, 4, True) for dtype in DTYPES),
    *(module(torch.bfloat16, states, power_of_two(-(-states // 16)), False) for states in STATES),
    *(module(torch.bfloat16, states, most_lanes(states), False) for states in STATES),
    *(module(torch.bfloat16, states, most_lanes(states), True) for states in STATES),
    *(
        module(torch.float16, states, most_lanes(states), backward, True)
        for states in (5, 16, 64, 200)
        for backward in (False, True)
    ),
    *(module(torch.float32, states, most_lanes(states), True, threads=32) for states in (4, 16, 128)),
]


def label(one: Specialisation) -> str:
    way = "backward" if one.backward else "forward"
    dtype, threads = str(one.dtype).removeprefix("torch."), f"{one.threads} threads"
    return f"{dtype}-{one.states}-{one.lanes}-{threads}-{way}{'-constant' * one.constant_B}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "built" in metafunc.fixturenames:
        if os.environ.get("ARCHLAB_EVERY_SPECIALISATION") == "1":
            jobs = [(one, arch) for one in dict.fromkeys(EVERY) for arch in ARCHITECTURES]
        else:
            mamba = module(torch.bfloat16, 16, 4, True)
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
        command = ["nvcc", "-cubin", f"-arch=sm_{arch}", "-std=c++17", *one.options, *defines, str(SOURCE)]
        done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return path
    with pytest.MonkeyPatch.context() as cache:
        cache.setenv("XDG_CACHE_HOME", str(folder))
        try:
            path.write_bytes(nvrtc.compiled(SOURCE, one.defines, (int(arch[:-1]), int(arch[-1])), one.options))
        except nvrtc.NvrtcError as error:
            if "no NVRTC" in str(error):
                pytest.skip(str(error))
            raise
    return path


def test_no_spills_and_few_registers(built: tuple[Specialisation, Callable[[str], str]]) -> None:
    one, say = built
    usage = re.findall(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", say("--dump-resource-usage"))
    most = {"scan_backward": min(255, REGISTERS // (one.blocks * one.threads))}
    assert len(usage) == 3
    for kernel, registers, stack, local in usage:
        assert (kernel, stack, local) == (kernel, "0", "0")
        assert int(registers) <= most.get(kernel, 168 if "ends" in kernel else 128)


def test_instructions_per_state(built: tuple[Specialisation, Callable[[str], str]]) -> None:
    one, say = built
    numbers = INSTRUCTIONS.get((one.lanes, one.backward), {}) if one.states == 16 and one.threads >= 128 else {}
    if not one.backward and one.states >= 4:
        numbers = {"scan_forward": FORWARD} | numbers
    functions = sass.functions(say("-sass")) if numbers else {}
    for kernel, most in numbers.items():
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
    one = module(torch.bfloat16, 4, 1, False)
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
