"""Bytes to model: a file, a folder, or by default the source of the running Python's standard library."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

NOT_STANDARD = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
"""Folders of the standard library's directory that are not its own source."""


class Corpus(NamedTuple):
    """data: (bytes,) uint8, read-only. digest: its sha256. files: how many it comes from. left_out: bytes not read."""

    data: np.ndarray
    digest: str
    files: int
    left_out: int


@functools.lru_cache(maxsize=4)
def read(path: str, max_bytes: int) -> Corpus:
    """The first `max_bytes` bytes of a file, or of all files of a folder joined in the order of their paths.

    path: "" is the standard library. Files and folders that begin with a dot are passed over in folders. Read once
    per process and path. Raises ValueError, in one sentence, for what is missing, empty or unreadable.
    """
    try:
        return _read(path, max_bytes)
    except OSError as error:
        raise ValueError(
            f"cannot read {error.filename or path}: {error.strerror}; make it readable or set another path"
        ) from error


def _read(path: str, max_bytes: int) -> Corpus:
    parts: list[bytes] = []
    room, left_out = max_bytes, 0
    for file in _files(path):
        content = _beginning(file, room)
        left_out += max(file.stat().st_size - len(content), 0)
        room -= len(content)
        if content:
            parts.append(content)
    if not parts:
        raise ValueError(f"{path or 'the standard library'} holds no bytes to model: set path to a file or folder")
    joined = b"".join(parts)
    return Corpus(np.frombuffer(joined, np.uint8), hashlib.sha256(joined).hexdigest(), len(parts), left_out)


def _beginning(file: Path, limit: int) -> bytes:
    """The first `limit` bytes; a file of which nothing is wanted is not opened."""
    if limit == 0:
        return b""
    with file.open("rb") as opened:
        return opened.read(limit)


def _files(path: str) -> list[Path]:
    if not path:
        return _sorted(_standard_library(Path(sysconfig.get_path("stdlib"))))
    given = Path(path).expanduser()
    if given.is_dir():
        return _sorted(file for file in given.rglob("*") if file.is_file() and not _hidden(file.relative_to(given)))
    if not given.is_file():
        raise ValueError(f"no text at {path}: expected an existing file or folder")
    return [given]


def _standard_library(root: Path) -> Iterator[Path]:
    for file in root.rglob("*.py"):
        if file.is_file() and not NOT_STANDARD.intersection(file.relative_to(root).parts):
            yield file


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def _sorted(files: Iterator[Path]) -> list[Path]:
    """By path as bytes, so that neither locale nor file system decides."""
    return sorted(files, key=lambda file: file.as_posix().encode(errors="surrogateescape"))
