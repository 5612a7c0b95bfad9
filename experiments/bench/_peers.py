"""Where the peers come from."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from experiments.bench._measure import Work


def peer(module: str, make: Callable[[Any], Work], find: Callable[[str], Any] = importlib.import_module) -> Work | str:
    """What `make` gives of a module that may be installed, else why there is nothing to compare with."""
    try:
        return make(find(module))
    except ModuleNotFoundError as error:
        return f"missing ({error.name})"
    except Exception as error:
        return f"cannot run ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})"
