"""Triton's programs where there is no GPU: under its interpreter, and compiled for GPUs that are not here."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CAPABILITIES = (80, 90, 100)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")


def interpret(file: str, chosen: str) -> None:
    """Run the tests of a file here that `chosen` (of pytest's -k) names, where Triton interprets its programs.

    In a process of its own: Triton reads the switch when it is imported.
    """
    tests = Path(__file__).with_name(file)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", chosen, str(tests)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def compiled(
    program: Any, pointers: dict[str, str], constants: dict[str, object], capability: int, warps: int = 4
) -> bytes:
    """The machine code of a program for a GPU of this compute capability.

    pointers: argument -> what it points at, such as 'bf16'; what is neither there nor a constant is a 64-bit number.
    Triton makes constants of numbers that are 1.
    """
    triton = importlib.import_module("triton")
    compiler = importlib.import_module("triton.compiler")
    target = importlib.import_module("triton.backends.compiler").GPUTarget("cuda", capability, 32)
    kinds = {name: f"*{to}" for name, to in pointers.items()} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i64") for name in program.arg_names}
    source = compiler.ASTSource(program, signature, constants)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, "num_warps": warps}).asm["cubin"]


def spilled(image: bytes, tmp_path: Path) -> int:
    """Bytes of a thread's memory that did not fit into registers."""
    tool = Path(importlib.import_module("triton").__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    file = tmp_path / "program.cubin"
    file.write_bytes(image)
    said = subprocess.run([tool, "--dump-resource-usage", file], capture_output=True, text=True, check=True).stdout
    return sum(int(count) for count in re.findall(r"(?:STACK|LOCAL):(\d+)", said))
