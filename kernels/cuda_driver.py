"""CUDA kernels launched through the driver's own interface: neither nvcc nor torch's binary interface is involved.

A module is compiled by NVRTC (kernels/nvrtc.py) for the GPU at hand, once per machine, and loaded into the context that
torch uses. Launches go to torch's current stream and wait for nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from kernels import nvrtc

_SHARED_BYTES = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_OLDEST = (8, 0)
_ROOT = Path(__file__).parent


class Specialisation(Protocol):
    """One compiled module: macros, and what a launch needs to know of it. Hashable."""

    @property
    def defines(self) -> Mapping[str, int]: ...

    @property
    def threads(self) -> int: ...

    @property
    def shared_bytes(self) -> Mapping[str, int]: ...


class Machine(Protocol):
    """What runs kernels: a GPU, or in tests its emulation."""

    def processors(self, device: torch.device) -> int:
        """How many multiprocessors the device has."""

    def launch(
        self, specialisation: Specialisation, kernel: str, blocks: int, problem: bytes, device: torch.device
    ) -> None:
        """Start a kernel whose one argument is this structure."""


class DriverError(RuntimeError):
    """The CUDA driver refused something."""


def why_not(device: torch.device | None) -> str | None:
    """Why kernels cannot be launched on this device (None: on any), with the remedy; None = they can."""
    if torch.version.hip is not None:
        return "this torch is built for ROCm: these kernels are for NVIDIA GPUs"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA: install a build with it (https://pytorch.org)"
    if not torch.cuda.is_available():
        return "torch sees no GPU: is there one, and does nvidia-smi show it?"
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        return f"it needs compute capability 8.0 or newer, not {capability[0]}.{capability[1]}: take another backend"
    try:
        _driver()
        nvrtc.library()
    except (DriverError, nvrtc.NvrtcError) as error:
        return str(error)
    return None


class Gpu:
    """The GPUs of this machine, for the kernels of one source file (a path under kernels/)."""

    def __init__(self, source: str) -> None:
        self._source = _ROOT / source
        self._modules: dict[tuple[int, Specialisation], ctypes.c_void_p] = {}
        self._functions: dict[tuple[int, Specialisation, str], ctypes.c_void_p] = {}
        self._lock = threading.Lock()

    def processors(self, device: torch.device) -> int:
        return int(torch.cuda.get_device_properties(device).multi_processor_count)

    def launch(
        self, specialisation: Specialisation, kernel: str, blocks: int, problem: bytes, device: torch.device
    ) -> None:
        if device.type != "cuda":
            raise ValueError(f"{kernel}: expected tensors on a CUDA device, got {device}")
        if not 0 < blocks < 2**31:
            raise ValueError(f"{kernel}: {blocks} blocks; a launch has 1 to 2^31 - 1")
        current = torch.cuda.current_device()
        index = current if device.index is None else device.index
        with contextlib.nullcontext() if index == current else torch.cuda.device(index):
            _make_current(index)
            function = self._function(index, specialisation, kernel)
            stream = torch.cuda.current_stream(index).cuda_stream
            arguments = (ctypes.c_char_p * 1)(problem)
            shared = specialisation.shared_bytes[kernel]
            grid, block = (blocks, 1, 1), (specialisation.threads, 1, 1)
            _check("cuLaunchKernel", function, *grid, *block, shared, stream, arguments, None)

    def _function(self, index: int, specialisation: Specialisation, kernel: str) -> ctypes.c_void_p:
        key = (index, specialisation, kernel)
        found = self._functions.get(key)
        if found is None:
            with self._lock:
                function = ctypes.c_void_p()
                module = self._module(index, specialisation)
                _check("cuModuleGetFunction", ctypes.byref(function), module, kernel.encode())
                _check("cuFuncSetAttribute", function, _SHARED_BYTES, specialisation.shared_bytes[kernel])
                found = self._functions[key] = function
        return found

    def _module(self, index: int, specialisation: Specialisation) -> ctypes.c_void_p:
        found = self._modules.get((index, specialisation))
        if found is None:
            capability = torch.cuda.get_device_capability(index)
            image = nvrtc.compiled(self._source, specialisation.defines, capability)
            found = ctypes.c_void_p()
            _check("cuModuleLoadData", ctypes.byref(found), ctypes.c_char_p(image))
            self._modules[index, specialisation] = found
        return found


def _make_current(index: int) -> None:
    """Torch's context on this thread: autograd's threads may not have touched the GPU yet."""
    context = ctypes.c_void_p()
    _check("cuCtxGetCurrent", ctypes.byref(context))
    if not context.value:
        _check("cuDevicePrimaryCtxRetain", ctypes.byref(context), ctypes.c_int(index))
        _check("cuCtxSetCurrent", context)


@functools.cache
def _driver() -> ctypes.CDLL:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError as error:
        raise DriverError(f"the NVIDIA driver's {name} cannot be loaded ({error}): install the driver") from error
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    driver.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    driver.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    driver.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    return driver


def _check(function: str, *arguments: object) -> None:
    driver = _driver()
    status = getattr(driver, function)(*arguments)
    if status != 0:
        message = ctypes.c_char_p()
        driver.cuGetErrorString(status, ctypes.byref(message))
        text = message.value.decode() if message.value else "unknown"
        raise DriverError(f"{function} failed: {text} ({status})")
