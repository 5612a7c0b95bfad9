"""What is said to NVIDIA's driver at a launch, heard by a library in its place (cuda_driver_stub.cpp)."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

from kernels import cuda_driver, nvrtc
from kernels.selective_scan._cuda_problem import Specialisation

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the stub is compiled by g++")

ONE = Specialisation(torch.bfloat16, 16, 8, 2, 64, False, False, False, False)
IMAGE = b"\x7fELF machine code"
STREAM = 0x7FFF_1234_5678


class Notes(ctypes.Structure):
    """As in cuda_driver_stub.cpp."""

    _fields_ = [
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        *((name, ctypes.c_uint) for name in ("shared", "launches", "loads", "attributes")),
        *((name, ctypes.c_int) for name in ("attribute", "attribute_value", "retained", "refused")),
        *((name, ctypes.c_void_p) for name in ("stream", "function", "extra", "context")),
        ("kernel", ctypes.c_char * 32),
        ("image", ctypes.c_ubyte * 16),
        ("argument", ctypes.c_int64 * 8),
    ]


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("driver") / "stub.so"
    source = Path(__file__).with_name("cuda_driver_stub.cpp")
    subprocess.run(["g++", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    return library


class Guard(contextlib.AbstractContextManager[None]):
    """Takes the place of torch.cuda.device."""

    entered: ClassVar[list[int]] = []

    def __init__(self, index: int) -> None:
        self.entered.append(index)

    def __exit__(self, *error: object) -> None:
        return None


@pytest.fixture
def notes(stub: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What the driver hears; torch has a GPU with a stream, and the compiler an image."""
    real = ctypes.CDLL
    monkeypatch.setattr(cuda_driver.ctypes, "CDLL", lambda name: real(str(stub) if "cuda" in name else name))
    cuda_driver._driver.cache_clear()
    cuda_driver._driver()
    monkeypatch.undo()
    monkeypatch.setattr(Guard, "entered", [])
    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=STREAM + index))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, 0))
    monkeypatch.setattr(nvrtc, "compiled", lambda source, defines, capability: IMAGE)
    library = real(str(stub))
    library.stub_notes.restype = ctypes.POINTER(Notes)
    heard = library.stub_notes()[0]
    ctypes.memset(ctypes.byref(heard), 0, ctypes.sizeof(heard))
    yield heard
    cuda_driver._driver.cache_clear()


@pytest.fixture
def launch() -> Callable[..., None]:
    gpu = cuda_driver.Gpu("selective_scan/cuda.cu")
    problem = struct.pack("8q", *range(2**40, 2**40 + 8))

    def on(device: str, blocks: int = 70_000, kernel: str = "scan_forward") -> None:
        gpu.launch(ONE, kernel, blocks, problem, torch.device(device))

    return on


def test_a_launch(notes: Any, launch: Callable[..., None]) -> None:
    launch("cuda:1")
    shared = ONE.shared_bytes["scan_forward"]
    assert (list(notes.grid), list(notes.block), notes.shared) == ([70_000, 1, 1], [64, 1, 1], shared)
    assert (notes.stream, notes.extra, notes.kernel) == (STREAM + 1, None, b"scan_forward")
    assert list(notes.argument) == list(range(2**40, 2**40 + 8))
    assert bytes(notes.image) == IMAGE[:16]
    assert (notes.attribute, notes.attribute_value) == (8, shared)
    assert Guard.entered == [1]


def test_the_context_of_the_device_is_taken_where_the_thread_has_none(notes: Any, launch: Callable[..., None]) -> None:
    launch("cuda:1")
    assert notes.context is not None
    assert notes.retained == 1
    notes.retained = -1
    launch("cuda:1")
    assert notes.retained == -1


def test_modules_are_loaded_once_on_each_gpu(notes: Any, launch: Callable[..., None]) -> None:
    for _ in range(3):
        launch("cuda")
        launch("cuda:0", kernel="scan_join")
    assert (notes.launches, notes.loads, notes.attributes) == (6, 1, 2)
    launch("cuda:1")
    assert notes.loads == 2


@pytest.mark.parametrize("blocks", [0, 2**31])
def test_a_launch_of_no_or_too_many_blocks_is_refused(blocks: int, notes: Any, launch: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match=f"{blocks} blocks; a launch has 1 to 2\\^31 - 1"):
        launch("cuda", blocks)


def test_what_the_driver_refuses_is_said(notes: Any, launch: Callable[..., None]) -> None:
    notes.refused = 1
    with pytest.raises(cuda_driver.DriverError, match=r"^cuLaunchKernel failed: invalid argument \(1\)$"):
        launch("cuda")


def test_tensors_elsewhere_are_refused(launch: Callable[..., None]) -> None:
    with pytest.raises(ValueError, match="expected tensors on a CUDA device, got cpu"):
        launch("cpu")
