"""`archlab list`: the architectures, tasks, kernel backends and presets that exist here."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import archs
from experiments import config, tasks
from experiments.errors import UserError

_HERE = Path(__file__).parent


def show() -> int:
    """Print every section, each item with one line on it; returns the exit status 0."""
    from rich.console import Console

    console = Console(highlight=False)
    for title, items in sections().items():
        console.print(f"[bold]{title}[/bold]")
        width = max(map(len, items), default=0)
        for name, line in items.items():
            console.print(f"  {name:<{width}}  {line}", markup=False, soft_wrap=True)
    return 0


def sections() -> dict[str, dict[str, str]]:
    """Title -> item -> one line, in the order of the listing."""
    return {
        "Architectures (--archs)": {
            name: first_line(Path(archs.__file__).with_name(f"{name}.py")) for name in archs.names()
        },
        "Tasks (--tasks)": {name: first_line(_HERE / "tasks" / f"{name}.py") for name in tasks.names()},
        "Kernel backends": {f"{op}/{name}": why or "runs" for op, name, why in backends()},
        "Published behaviours (verify --only)": {
            path.stem: first_line(path) for path in sorted((_HERE / "verify").glob("[!_]*.py"))
        },
        "Presets (--config)": {path.stem: _first_sentence(path) for path in sorted(config.PRESETS.glob("*.yaml"))},
    }


def backends() -> Iterator[tuple[str, str, str | None]]:
    """Every (operation, backend, why it cannot run or None), in the order in which `auto` tries them.

    Raises UserError where another package called `kernels` is in the way.
    """
    import kernels

    if not hasattr(kernels, "operations"):
        raise UserError(f"the package kernels at {kernels.__file__} is not archlab's: give archlab its own environment")
    for operation in kernels.operations():
        for name, why in kernels.backends(operation).items():
            yield operation, name, why


def first_line(path: Path) -> str:
    """The first line of a file's docstring, read without importing it; of a file that is no Python, where it is not."""
    try:
        docstring = ast.get_docstring(ast.parse(path.read_bytes()))
    except (SyntaxError, ValueError) as error:
        return f"does not parse: {error}"
    return docstring.splitlines()[0] if docstring else ""


def _first_sentence(path: Path) -> str:
    """Of the comment that a preset begins with."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())
    comment = " ".join(line.removeprefix("#").strip() for line in lines)
    return comment.split(". ")[0].removesuffix(".")
