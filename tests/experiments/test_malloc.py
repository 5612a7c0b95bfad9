"""Freed memory: pages that the system hands out are counted, in processes of their own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other libraries have no such settings")

PROGRAM = """
import resource, sys
import torch
from experiments import malloc

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def step():
    # 1 GiB in blocks of many sizes, freed at once.
    del [torch.ones(size << 20) for size in (1, 4, 90, 2, 60, 99)][:]

getattr(malloc, sys.argv[1])()
for _ in range(10):  # until enough is kept between blocks
    step()
getattr(malloc, sys.argv[2])()
before = pages()
step()
print(pages() - before)
"""


def pages(setting: str, then: str | None = None) -> int:
    """Pages that were new in a step like those before it, under the same setting or then another."""
    arguments = [sys.executable, "-c", PROGRAM, setting, then or setting]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    return int(told.stdout)


def test_kept_memory_is_used_again() -> None:
    assert pages("keep_freed") < 100


def test_returned_memory_is_new_each_time() -> None:
    assert pages("return_freed") > 10000


def test_what_was_kept_does_not_serve_those_who_would_not_have_kept_it() -> None:
    usual = pages("as_usual")
    assert usual > 10000
    assert pages("keep_freed", then="as_usual") >= 0.9 * usual
