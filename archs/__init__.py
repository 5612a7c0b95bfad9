"""Sequence architectures behind one contract. One file that defines `class Config` is one architecture.

archs.names()                                    the architectures that exist
archs.build("gqa", vocab_size=64, n_kv_heads=1)  a Backbone
archs.load_pretrained("path/of/a/folder")        one with the weights of a Llama, Mamba or Marian checkpoint
archs.greedy(backbone, source, 32)               generation, the same for all
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from archs import registry

if TYPE_CHECKING:
    from archs.contract import Backbone, State, StateConsumed, Tokens
    from archs.generate import beam, greedy, sample
    from archs.pretrained import load_pretrained
    from archs.verify import ContractError, verify_contract

_LAZY = {
    "Backbone": "contract", "State": "contract", "StateConsumed": "contract", "Tokens": "contract",
    "greedy": "generate", "sample": "generate", "beam": "generate",
    "ContractError": "verify", "verify_contract": "verify",
    "load_pretrained": "pretrained",
}  # fmt: skip
__all__ = [
    "Backbone", "ContractError", "State", "StateConsumed", "Tokens", "beam", "build", "greedy", "load",
    "load_pretrained", "names", "sample", "verify_contract",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import torch only when something that needs it is asked for."""
    if name in _LAZY:
        return getattr(importlib.import_module(f"archs.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'archs' has no attribute {name!r}")


def names() -> list[str]:
    """The architectures in this folder, sorted: the stems of the files that define `class Config`."""
    return registry.names(Path(__file__).parent)


def load(spec: str) -> ModuleType:
    """The module of an architecture, by its name or by the path of a user's own file.

    Raises ValueError for an unknown name, or a file that is missing, does not import, or lacks `class Config` and one
    Backbone.
    """
    if spec.endswith(".py"):
        module = registry.load_file(spec, "architecture")
        backbone_class(module)
        return module
    if spec not in names():
        raise ValueError(f"unknown architecture {spec!r}: expected one of {', '.join(names())}, or a file NAME.py")
    return importlib.import_module(f"archs.{spec}")


def backbone_class(module: ModuleType) -> type[Backbone]:
    """The one Backbone that an architecture's file defines. Raises ValueError where it has none or several."""
    from archs.contract import Backbone

    found = [
        item
        for item in vars(module).values()
        if inspect.isclass(item) and issubclass(item, Backbone) and item.__module__ == module.__name__
    ]
    if len(found) != 1 or not hasattr(module, "Config"):
        raise ValueError(
            f"{module.__file__} is no architecture: expected `class Config` and exactly one Backbone, "
            f"found {len(found)} of the latter"
        )
    return found[0]


def build(name: str, vocab_size: int, **config: Any) -> Backbone:
    """A freshly initialised backbone.

    name: one of `names()`, or the path of a file. config: fields of that file's `Config`.
    Raises ValueError or TypeError, in one sentence, for what the Config refuses.
    """
    module = load(name)
    return backbone_class(module)(module.Config(**config), vocab_size)
