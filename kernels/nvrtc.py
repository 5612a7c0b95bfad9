"""CUDA C++ compiled by NVRTC, the compiler library that torch's CUDA builds bring along, into a cache on disk.

Sources are free of CUDA's headers; they may include files that lie beside them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from kernels.build import cache_folder

_FLAGS = ("--std=c++17",)


class NvrtcError(RuntimeError):
    """Nothing can be compiled for the GPU: one sentence with the reason and the remedy."""


def compiled(source: Path, defines: Mapping[str, int], capability: tuple[int, int]) -> bytes:
    """The source as machine code for GPUs of a compute capability, from the cache if it is there.

    The key is made of the source with what lies beside it, the flags and the compiler. Raises NvrtcError.
    """
    flags = (*_FLAGS, _architecture(capability), *(f"-D{name}={value}" for name, value in defines.items()))
    headers = {file.name: file.read_bytes() for file in sorted(source.parent.glob("*.cuh"))}
    parts = [repr((version(), flags, torch.__version__)).encode(), source.read_bytes()]
    parts += [part for name, text in headers.items() for part in (name.encode(), text)]
    key = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]
    path = cache_folder() / f"{source.parent.name}-{source.stem}-{key}.cubin"
    try:
        return path.read_bytes()
    except OSError:
        image = _compile(source, headers, flags)
        _keep(path, image)
        return image


def version() -> tuple[int, int]:
    """Of NVRTC."""
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    return major.value, minor.value


@functools.cache
def library() -> ctypes.CDLL:
    """NVRTC itself, of torch's CUDA version where there are several. Raises NvrtcError."""
    major = (torch.version.cuda or "13").partition(".")[0]
    for name in _candidates(major):
        try:
            _load_builtins(name)
            return ctypes.CDLL(str(name))
        except OSError:
            continue
    raise NvrtcError(f"no NVRTC {major} to compile with: install it ({sys.executable} -m pip install {_wheel(major)})")


def _load_builtins(library: Path | str) -> None:
    """What NVRTC opens at its first compilation: by its name alone, so that it must be found where the system looks,
    or be there already."""
    if isinstance(library, Path):
        for file in library.parent.glob("*nvrtc-builtins*"):
            if ".alt." not in file.name:
                ctypes.CDLL(str(file))


def _wheel(major: str) -> str:
    return "nvidia-cuda-nvrtc-cu12" if major == "12" else f"'nvidia-cuda-nvrtc=={major}.*'"


def _candidates(major: str) -> list[Path | str]:
    """Where NVRTC may lie: in NVIDIA's wheels, beside torch, or where the system looks. Not its alternative build,
    `alt`, which lies beside it: torch does not use that."""
    windows = sys.platform == "win32"
    pattern = f"nvrtc64_{major}0*_0.dll" if windows else f"libnvrtc*.so.{major}*"
    spec = importlib.util.find_spec("nvidia")
    wheels = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    folders = [folder for place in wheels for folder in (*place.glob("*/lib"), *place.glob("*/bin"))]
    folders.append(Path(torch.__file__).parent / "lib")
    found = [file for folder in folders for file in sorted(folder.glob(pattern))]
    found = [file for file in found if "builtins" not in file.name and ".alt." not in file.name]
    return [*found, f"nvrtc64_{major}0_0.dll" if windows else f"libnvrtc.so.{major}"]


def _architecture(capability: tuple[int, int]) -> str:
    """The option that names the GPU, or the newest that NVRTC knows, as portable code for the driver to finish."""
    count = ctypes.c_int()
    _check(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _check(library().nvrtcGetSupportedArchs(known))
    wanted = capability[0] * 10 + capability[1]
    if wanted in known:
        return f"--gpu-architecture=sm_{wanted}"
    return f"--gpu-architecture=compute_{max(number for number in known if number < wanted)}"


def _compile(source: Path, headers: Mapping[str, bytes], flags: tuple[str, ...]) -> bytes:
    nvrtc, program = library(), ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*headers.values())
    names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
    text, name = source.read_bytes(), source.name.encode()
    _check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), text, name, len(headers), texts, names))
    try:
        options = (ctypes.c_char_p * len(flags))(*(flag.encode() for flag in flags))
        if nvrtc.nvrtcCompileProgram(program, len(flags), options) != 0:
            log = _fetch(program, "nvrtcGetProgramLog").decode(errors="replace")
            raise NvrtcError(f"NVRTC could not compile {source.name}: {log.strip() or 'it gave no message'}")
        portable = any("compute_" in flag for flag in flags)
        return _fetch(program, "nvrtcGetPTX" if portable else "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _fetch(program: ctypes.c_void_p, getter: str) -> bytes:
    """What a pair of functions, nvrtcGetX and nvrtcGetXSize, gives."""
    size = ctypes.c_size_t()
    _check(getattr(library(), f"{getter}Size")(program, ctypes.byref(size)))
    room = ctypes.create_string_buffer(size.value)
    _check(getattr(library(), getter)(program, room))
    return room.raw


def _check(status: int) -> None:
    if status != 0:
        library().nvrtcGetErrorString.restype = ctypes.c_char_p
        raise NvrtcError(f"NVRTC failed: {library().nvrtcGetErrorString(status).decode()}")


def _keep(path: Path, image: bytes) -> None:
    """Write under a name of our own, then rename: processes that start together each see a whole file or none.

    Without a cache folder that can be written, each process compiles for itself.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(suffix=".cubin", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(image)
        os.replace(unfinished, path)
    except OSError:
        return
