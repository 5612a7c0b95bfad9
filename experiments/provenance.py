"""Where a result comes from: machine, versions, git revision, and a digest of the sources that computed it.

Imports no torch, so that the report can tell which records are stale.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("archlab", "torch", "lightning", "torchmetrics", "numpy", "triton", "mamba-ssm", "causal-conv1d")
"""Whose versions are recorded, where installed."""
TRAINING = (
    "callbacks", "checkpoint", "data", "endings", "loss", "measure", "metrics", "module", "ranks", "training", "worker",
)  # fmt: skip
"""The files of experiments/ that decide what a record holds; the others only plan, show or tell."""
FOLLOWED = ("archs", "experiments/tasks")
"""Folders of which only what is imported counts; of kernels/ everything does, since any backend may run."""


_loaded: dict[Path, bytes] = {}
"""The files of modules, as they were when `remember` was called."""


def remember() -> None:
    """Keep the sources of the modules that are loaded: whatever is edited later, this process runs what it has loaded.

    The fork server calls it, and the cells, which run what it has loaded, inherit what it remembers.
    """
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in ("archs", "experiments", "kernels") and (
            file := getattr(module, "__file__", None)
        ):
            _loaded[Path(file).resolve()] = Path(file).read_bytes()


def _content(path: Path) -> bytes:
    return _loaded[path] if path in _loaded else path.read_bytes()


def environment() -> dict[str, Any]:
    """Versions, git revision and platform of this process."""
    return {
        "versions": {"python": platform.python_version(), **_versions()},
        "git": git(),
        "platform": platform.platform(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git() -> str | None:
    """The revision checked out, with "-dirty" where tracked files differ; None where archlab is not a checkout."""
    # A file of ours must be tracked: an installed copy may lie within somebody else's repository.
    tracked = _git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
    revision = _git("rev-parse", "HEAD")
    if tracked is None or revision is None:
        return None
    return revision + ("-dirty" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*arguments: str) -> str | None:
    """Standard output of a git command in the project; None where it fails or git is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def sources(arch: str, task: str) -> str:
    """Digest of every source file that decides the result of this architecture on this task.

    arch, task: names, or paths of a user's own files. Raises OSError for a file that is not there.
    """
    digest = hashlib.sha256()
    for name, path in sorted(_files(arch, task)):
        digest.update(f"{name}\n{len(content := _content(path))}\n".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def _files(arch: str, task: str) -> Iterator[tuple[str, Path]]:
    """Names that are the same on every machine, and the files."""
    own = {"arch": _own("archs", arch), "task": _own("experiments/tasks", task)}
    training = [ROOT / "experiments" / f"{name}.py" for name in TRAINING]
    kernels = [path for path in (ROOT / "kernels").rglob("*") if path.suffix in {".py", ".cpp", ".h", ".cu", ".cuh"}]
    generate = ROOT / "archs" / "generate.py"  # the package imports it lazily, by name
    followed = _imported([*own.values(), *training, generate]) - set(own.values())
    yield from own.items()
    yield from ((path.relative_to(ROOT).as_posix(), path) for path in {*training, *kernels, *followed, generate})


def _own(folder: str, spec: str) -> Path:
    return Path(spec).expanduser().resolve() if spec.endswith(".py") else ROOT / folder / f"{spec}.py"


def _imported(files: list[Path]) -> set[Path]:
    """The files in the followed folders that these import, directly or through others."""
    found: set[Path] = set()
    while files:
        new = {path for module in _modules(files.pop()) if (path := _followed(module)) is not None} - found
        found |= new
        files = [*files, *new]
    return found


def _modules(file: Path) -> Iterator[str]:
    """Dotted names that may be modules, from every import statement; none of a file that is not Python."""
    try:
        tree = ast.parse(_content(file))
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _followed(module: str) -> Path | None:
    folder, _, name = module.replace(".", "/").rpartition("/")
    path = ROOT / folder / f"{name}.py"
    return path if folder in FOLLOWED and path.is_file() else None
