"""Every tensor's memory, followed from its creation to its end, real or fake: the same account of both.

Below autograd every operation passes here, so each storage is seen when it comes to be; a weak reference tells when it
dies. What an operation allocates and frees within itself is not seen, except where it is declared (`scratch`).
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.profile.operations import Work
from experiments.profile.scratch import scratch

CATEGORIES = ("parameters", "gradients", "optimizer", "activations", "state", "rest")
"""What bytes are held for. activations: saved for the backward pass; state: what decoding knows of the past."""


class Tracker(TorchDispatchMode):
    """Within it, bytes held now and at the peak, by category, and the work done.

    threads: of the processor, each of which takes scratch memory; 0 = no processor's is counted.
    """

    def __init__(self, threads: int = 0) -> None:
        super().__init__()
        self.threads = threads
        self.held: dict[int, tuple[int, str]] = {}
        self.references: dict[int, Any] = {}
        self.now: Counter[str] = Counter()
        self.total = 0
        self.peak = 0
        self.at_peak: dict[str, int] = {}
        self.operations = 0
        """Since the start, all phases."""
        self.work = Work()
        self.composite: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # questions about fake tensors
            return func(*args, **kwargs)
        if self.composite.get(func, True):
            # Under inference_mode operations arrive whole that are made of others; what is inside counts.
            with self:
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
            self.composite[func] = False
        results = func(*args, **kwargs)
        for result in results if isinstance(results, list | tuple) else (results,):
            if isinstance(result, Tensor):
                self.hold(result)
        self.operations += 1
        self._consider(scratch(func, args, self.threads))
        self.work.add(func, args, kwargs, results)
        return results

    def hold(self, tensor: Tensor, category: str | None = None) -> None:
        """Follow a tensor's storage; with a category, count it there from now on."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.held:
            self.references[key] = weakref.ref(storage, partial(self._release, key))
            self._enter(key, storage.nbytes(), category or "rest")
            self._consider(0)
        elif category is not None and self.held[key][1] != category:
            size, before = self.held[key]
            self.now[before] -= size
            self.now[category] += size
            self.held[key] = size, category

    def hold_all(self, tensors: Iterable[Any], category: str) -> None:
        """Follow these; what is no tensor is passed over."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self.hold(tensor, category)

    def _enter(self, key: int, size: int, category: str) -> None:
        self.held[key] = size, category
        self.now[category] += size
        self.total += size

    def _release(self, key: int, reference: Any) -> None:
        size, category = self.held.pop(key)
        del self.references[key]
        self.now[category] -= size
        self.total -= size

    def _consider(self, momentary: int) -> None:
        if self.total + momentary > self.peak:
            self.peak = self.total + momentary
            self.at_peak = {**self.now, "rest": self.now["rest"] + momentary}

    def reset(self) -> None:
        """Begin a phase: forget peak and work, not what is held."""
        self.peak, self.at_peak, self.work = 0, {}, Work()
        self._consider(0)

    def split(self) -> dict[str, int]:
        """Bytes at the peak, by category."""
        return {name: self.at_peak.get(name, 0) for name in CATEGORIES}

    @contextmanager
    def saved(self) -> Iterator[None]:
        """Within, what autograd saves for the backward pass counts as activations."""

        def pack(tensor: Tensor) -> Tensor:
            key = tensor.untyped_storage()._cdata
            if key not in self.held or self.held[key][1] == "rest":
                self.hold(tensor, "activations")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def watch_gradients(self, module: nn.Module) -> Callable[[], None]:
        """Count each parameter's gradient as soon as it is there; returns what ends that."""

        def hook(parameter: Tensor) -> None:
            if parameter.grad is not None:
                self.hold(parameter.grad, "gradients")

        handles = [p.register_post_accumulate_grad_hook(hook) for p in module.parameters() if p.requires_grad]

        def end() -> None:
            for handle in handles:
                handle.remove()

        return end
