"""mamba_ssm, the peer on GPUs: as it is installed, else built once from its source distribution.

It is built for this comparison alone, into archlab's cache: with the kernels of Mamba's own scan switched on, for the
torch and the compiler that are here, and without the packages that only its models need.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import torch

from kernels.build import cache_folder

SWITCHES = {"MAMBA_FORCE_BUILD": "TRUE", "MAMBA_KEEP_CUDA_BUILD": "TRUE"}
HOURS = 2.0
# Of a compiler, of Python, or of a Python without pip; not pip's own remark that there was an error.
_REASON = re.compile(r"(?:fatal error|error|\w+Error): (?!subprocess-exited-with-error).*|No module named pip")


def find(module: str) -> types.ModuleType:
    """A module of the package. Raises RuntimeError or ImportError with the reason why it cannot be had."""
    if not torch.cuda.is_available():
        raise RuntimeError("needs CUDA")
    try:
        return importlib.import_module(module)
    except ImportError:
        _use(_built())
        return importlib.import_module(module)


def _use(folder: Path) -> None:
    """Make the package importable from there, without its __init__, which imports every model that it has."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "mamba_ssm"]:
        del sys.modules[name]
    package = types.ModuleType("mamba_ssm")
    package.__path__ = [str(folder / "mamba_ssm")]
    package.__spec__ = importlib.machinery.ModuleSpec("mamba_ssm", None, is_package=True)
    sys.modules["mamba_ssm"] = package
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _built() -> Path:
    """The folder that it is installed in."""
    folder = cache_folder() / f"mamba-ssm-{torch.__version__}-{sys.implementation.cache_tag}"
    if folder.is_dir():
        return folder
    if not _has_nvcc():
        raise RuntimeError("neither installed nor to be built: no nvcc")
    print("mamba-ssm is built from its source distribution, once: this may take an hour", file=sys.stderr)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
        _install(Path(unfinished) / "done")
        os.replace(Path(unfinished) / "done", folder)
    return folder


def _install(folder: Path) -> None:
    """By pip, which builds it."""
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", "mamba-ssm", "--target", str(folder)]
    try:
        status, said = _run([sys.executable, "-m", "pip", "install", *options, "mamba-ssm"], os.environ | SWITCHES)
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"not to be built within {HOURS:g} hours") from error
    if status != 0:
        raise RuntimeError(f"not to be built: {_reason(said) or f'status {status}'}")


def _run(command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """A command's status and its errors; if it is given up, then with the compilers that it has started."""
    pipes: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, start_new_session=True, **pipes) as process:
        try:
            _, said = process.communicate(timeout=HOURS * 3600)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, said


def _has_nvcc() -> bool:
    """Where torch looks for it when it builds an extension: not only on the path."""
    from torch.utils.cpp_extension import CUDA_HOME

    return CUDA_HOME is not None and shutil.which("nvcc", path=os.path.join(CUDA_HOME, "bin")) is not None


def _reason(said: str) -> str:
    """The first error that pip shows of the build, without where it is; else the last line, which is of pip itself."""
    found = _REASON.search(said)
    return found[0].strip() if found else said.strip().rpartition("\n")[2]
