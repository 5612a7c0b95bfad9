"""Tasks behind one contract. One file that defines `class Config(Task)` is one task.

tasks.names()                            the tasks that exist
tasks.make("recall", keys=64)            a configured task
tasks.make("./my_task.py")               a user's own
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

from archs import registry
from experiments import strict
from experiments.errors import UserError
from experiments.tasks.contract import Task

__all__ = ["Task", "load", "make", "names"]


def names() -> list[str]:
    """The tasks in this folder, sorted: the stems of the files that define `class Config`."""
    return registry.names(Path(__file__).parent)


def load(spec: str) -> ModuleType:
    """The module of a task, by its name or by the path of a user's own file.

    Raises UserError for an unknown name, a file that is missing or does not run, or one without a usable Config.
    """
    if spec.endswith(".py"):
        module = _own_file(spec)
    elif spec in names():
        module = importlib.import_module(f"experiments.tasks.{spec}")
    else:
        raise UserError(f"unknown task {spec!r} (a name or a file NAME.py): {strict.nearest(spec, names())}")
    _check(module, spec)
    return module


def make(spec: str, **config: Any) -> Task:
    """The task `spec` (see `load`) with these fields of its Config; JSON lists may stand for tuples.

    Raises UserError, in one sentence, for an unknown key, a value of the wrong type, or what the Config refuses.
    """
    made: type[Task] = load(spec).Config
    try:
        task = strict.build(made, config, f"task.{spec}")
        hash(task)
    except (ValueError, TypeError) as error:
        raise UserError(f"task {spec}: {error}") from error
    return task


def _own_file(spec: str) -> ModuleType:
    try:
        return registry.load_file(spec, "task")
    except ValueError as error:
        raise UserError(str(error)) from error


def _check(module: ModuleType, spec: str) -> None:
    """Raises UserError unless the module's Config is a Task that can be made."""
    made = getattr(module, "Config", None)
    if not (inspect.isclass(made) and issubclass(made, Task) and dataclasses.is_dataclass(made)):
        raise UserError(f"{spec} is no task: expected `class Config(Task)`, a frozen keyword-only dataclass")
    missing = sorted(made.__abstractmethods__) + ([] if hasattr(made, "inputs") else ["inputs"])
    if missing:
        raise UserError(f"{spec} is no task yet: its Config does not define {', '.join(missing)}")
