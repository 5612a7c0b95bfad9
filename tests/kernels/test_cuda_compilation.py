"""The CUDA kernels, compiled: registers, spills and instructions per state are kept, without a GPU.

ARCHLAB_EVERY_SPECIALISATION=1 pytest tests/kernels/test_cuda_compilation.py     more of them, for more GPUs: minutes
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import sass
import torch

import kernels
from kernels import nvrtc
from kernels.selective_scan._cuda_problem import DTYPES, Specialisation, backward_threads

SOURCE = Path(kernels.__file__).parent / "selective_scan" / "cuda.cu"
ARCHITECTURES = ("80", "90", "100")
MOST_REGISTERS = 128  # so that 512 threads fit on a multiprocessor
MOST_SPILLED = 1200  # bytes that a thread of a backward pass stores and loads beside its registers, see `spilled`
# Instructions in the hot loop per state and step. (lanes, backward) -> kernel -> at most
INSTRUCTIONS = {
    (1, False): {"scan_forward": 6.0, "scan_ends": 4.7},
    (2, False): {"scan_forward": 6.8},
    (4, False): {"scan_forward": 8.1, "scan_ends": 5.8},
    (4, True): {"scan_backward": 30.0, "scan_ends_reverse": 5.8},
}


def module(dtype: torch.dtype, states: int, lanes: int, backward: bool, constant: bool = False) -> Specialisation:
    threads = backward_threads(states, lanes) if backward else 128
    return Specialisation(dtype, states, lanes, threads, backward, constant, constant)


FEW = [
    module(torch.bfloat16, 16, 1, False),
    module(torch.bfloat16, 16, 4, False),
    module(torch.bfloat16, 16, 4, True),
    module(torch.float32, 16, 4, True),
]
EVERY = [
    *(module(dtype, 16, lanes, False) for dtype in DTYPES for lanes in (1, 2, 4)),
    *(module(dtype, 16, 4, True) for dtype in DTYPES),
    *(module(torch.bfloat16, states, -(-states // 16), False) for states in (1, 4, 8, 32, 64, 128, 256)),
    *(module(torch.bfloat16, states, min(32, -(-states // 4)), True) for states in (1, 4, 8, 32, 64, 128, 256)),
    *(module(torch.float16, 5, 2, backward, True) for backward in (False, True)),
]


def label(one: Specialisation) -> str:
    way = "backward" if one.backward else "forward"
    return f"{str(one.dtype).removeprefix('torch.')}-{one.states}-{one.lanes}-{way}{'-constant' * one.constant_B}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "built" in metafunc.fixturenames:
        every = os.environ.get("ARCHLAB_EVERY_SPECIALISATION") == "1"
        jobs = [(one, arch) for one in EVERY for arch in ARCHITECTURES] if every else [(one, "90") for one in FEW]
        metafunc.parametrize("built", jobs, ids=lambda job: f"{label(job[0])}-sm_{job[1]}", indirect=True)


@pytest.fixture
def built(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Specialisation, str, Path, str]:
    """A specialisation, the architecture, its machine code, and what ptxas says of it."""
    if shutil.which("nvcc") is None:
        pytest.skip("no nvcc to compile with")
    one, arch = request.param
    return one, arch, *_compiled(one, arch, tmp_path_factory.getbasetemp())


@functools.cache
def _compiled(one: Specialisation, arch: str, folder: Path) -> tuple[Path, str]:
    path = folder / f"{label(one)}-{arch}.cubin"
    defines = [f"-D{name}={value}" for name, value in one.defines.items()]
    command = ["nvcc", "-cubin", f"-arch=sm_{arch}", "-std=c++17", "-Xptxas", "-v", *defines, str(SOURCE)]
    done = subprocess.run([*command, "-o", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path, done.stderr


def spilled(one: Specialisation, arch: str) -> int:
    """Bytes at most: none forwards, nor in Mamba's own backward pass on an H100; elsewhere kept from growing."""
    return MOST_SPILLED if one.backward and (one.states, arch) != (16, "90") else 0


def test_few_registers_and_few_spills(built: tuple[Specialisation, str, Path, str]) -> None:
    one, arch, _, said = built
    registers = [int(number) for number in re.findall(r"Used (\d+) registers", said)]
    spills = [int(number) for number in re.findall(r"(\d+) bytes spill", said)]
    assert len(registers) == 3
    assert max(registers) <= MOST_REGISTERS
    assert sum(spills) <= spilled(one, arch)


def test_instructions_per_state(built: tuple[Specialisation, str, Path, str]) -> None:
    one, _, path, _ = built
    tool = _cuobjdump()
    if tool is None:
        pytest.skip("no cuobjdump to disassemble with (Triton's wheel carries one)")
    if one.states != 16:
        pytest.skip("the numbers are kept for 16 states")
    search = {**os.environ, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"}
    text = subprocess.run([tool, "-sass", path], capture_output=True, text=True, env=search, check=True).stdout
    for kernel, most in INSTRUCTIONS[one.lanes, one.backward].items():
        loop = sass.hot_loop(sass.functions(text)[kernel])
        assert len(loop) / sass.exponentials(loop) <= most, (kernel, sass.histogram(loop))


def _cuobjdump() -> Path | None:
    beside = Path(sysconfig.get_paths()["purelib"]) / "triton" / "backends" / "nvidia" / "bin" / "cuobjdump"
    found = shutil.which("cuobjdump") or (beside if os.access(beside, os.X_OK) else None)
    return None if found is None else Path(found)


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
