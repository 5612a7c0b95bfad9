"""C++ compiled at its first use, into the user's cache folder.

A library knows torch by its stable C interface alone (operators.h), and Python not at all.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch

_FLAGS = ("-O2", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-shared", "-fPIC", "-pthread")


class BuildError(RuntimeError):
    """A library cannot be had on this machine: one sentence with the reason and the remedy."""


@functools.cache
def attempt(source: Path, *defines: str) -> ctypes.CDLL | BuildError:
    """The library made of a C++ source, or why there is none; tried once per process.

    defines: preprocessor settings, such as 'WINDOW=64'. The key of the cache is made of the source with all headers
    of kernels/, the compiler, the flags, torch's version and the processor.
    """
    try:
        return ctypes.CDLL(str(_built(source, (*_FLAGS, *(f"-D{define}" for define in defines)))))
    except BuildError as error:
        return error
    except (OSError, subprocess.SubprocessError) as error:
        return BuildError(f"building {source.name} failed: {error}")


def cache_folder() -> Path:
    """Where compiled libraries are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(base) / "archlab"


def _built(source: Path, flags: tuple[str, ...]) -> Path:
    compiler = shutil.which("g++")
    if compiler is None:
        raise BuildError("no C++ compiler: install g++ (Debian, Ubuntu: apt install g++)")
    library = cache_folder() / f"{source.parent.name}-{source.stem}-{_key(source, compiler, flags)}.so"
    if not library.exists():
        _compile(compiler, flags, source, library)
    return library


def _key(source: Path, compiler: str, flags: tuple[str, ...]) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
    headers = sorted([*source.parent.glob("*.h"), *source.parent.parent.glob("*.h")])
    parts = [version, " ".join(flags).encode(), torch.__version__.encode(), _processor().encode()]
    parts += [file.read_bytes() for file in (source, *headers)]
    digests = b"".join(hashlib.sha256(part).digest() for part in parts)
    return hashlib.sha256(digests).hexdigest()[:16]


def _processor() -> str:
    """What `-march=native` looks at: the machine, its model and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    wanted = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join([platform.machine(), *sorted({line for line in lines if line.startswith(wanted)})])


def _compile(compiler: str, flags: tuple[str, ...], source: Path, library: Path) -> None:
    """Build under a name of our own, then rename: processes that start together each see a whole library or none."""
    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        handle, unfinished = tempfile.mkstemp(suffix=".so", dir=library.parent)
    except OSError as error:
        remedy = "make it writable or set XDG_CACHE_HOME to a folder that is"
        raise BuildError(f"the cache folder {library.parent} cannot be written ({error.strerror}): {remedy}") from error
    os.close(handle)
    try:
        command = [compiler, *flags, str(source), _torch(), "-o", unfinished]
        result = subprocess.run(command, capture_output=True, text=True)
        if result.returncode != 0:
            raise BuildError(f"{compiler} could not compile {source.name}: {_first_error(result.stderr)}")
        os.replace(unfinished, library)
    finally:
        Path(unfinished).unlink(missing_ok=True)


def _torch() -> str:
    """What a library is linked with, so that it finds in the process the torch that is in use."""
    found = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"), None)
    if found is None:
        raise BuildError("this torch has no libtorch_cpu to link with: install one of its wheels")
    return str(found)


def _first_error(messages: str) -> str:
    lines = messages.strip().splitlines() or ["it gave no message"]
    return next((line for line in lines if "error" in line), lines[0])
