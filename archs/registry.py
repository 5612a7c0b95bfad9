"""The file system is the registry: which files of a folder take part, and how a user's own joins. Imports no torch."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def names(folder: Path) -> list[str]:
    """The stems of a folder's files that define `class Config`, sorted; read without importing them."""
    return sorted(file.stem for file in folder.glob("*.py") if "\nclass Config" in file.read_text(encoding="utf-8"))


def load_file(spec: str, kind: str) -> ModuleType:
    """The module of a user's own file, imported once per path, so that two files of one name are two modules.

    kind: what the file should be, for the error. Raises ValueError where it is missing or does not import.
    """
    path = Path(spec).expanduser().resolve()
    if not path.is_file():
        raise ValueError(f"no {kind} file at {spec}: expected a Python file that defines class Config")
    name = _module_name(path)
    return sys.modules.get(name) or _import(name, path, kind)


def own_name(module: str) -> str:
    """What a module is called in messages and reports: the stem of its file."""
    return module.rpartition(".")[2]


def _module_name(path: Path) -> str:
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    return f"archlab_user_{digest}.{path.stem.replace('.', '_')}"


def _import(name: str, path: Path, kind: str) -> ModuleType:
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up while it runs
    try:
        found.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        raise ValueError(f"{kind} file {path} does not import: {type(error).__name__}: {error}") from error
    return module
