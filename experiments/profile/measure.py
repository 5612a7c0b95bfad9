"""One measured point: its speed, its memory, and the process's peak beside."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

import kernels
from experiments import measure
from experiments.errors import UserError
from experiments.profile.account import account
from experiments.profile.config import DECODED
from experiments.profile.point import Point
from experiments.profile.subject import Subject, build, warm_up

LEAST = 3
"""Timings that a median is taken of, unless each takes very long."""
PATIENCE = 6
"""Times the wished seconds, after which fewer timings must do."""
MOST_OPERATIONS = 120_000
"""More operations than that are not tracked: following each takes some fifty microseconds."""
SKIPPED = 2
"""Tokens generated before those that are timed."""

_MMAP_THRESHOLD = -3
"""M_MMAP_THRESHOLD of malloc.h: larger blocks are mapped each by itself, and a fixed value stays fixed."""

Report = Callable[[dict[str, Any]], None]


def measured(point: Point, report: Report) -> dict[str, Any]:
    """The record's "result" for the point's one context. report: told of what is known already.

    Raises UserError where a slow kernel would be measured that nobody asked for.
    """
    kernels.forget()
    context = point.contexts[0]
    with torch.device(point.device):
        subject = build(point)
        warm_up(subject)
        refuse_fallback(point)
        before = _settle(subject)
        speed = _speed(subject, context)
        process = measure.most_allocated(subject.device)
    result = {
        "context": context,
        "speed": speed,
        "process_bytes": None if process is None or before is None else process - before,
        "parameters": sum(parameter.numel() for parameter in subject.backbone.parameters()),
    }
    report({"result": result})
    gc.collect()
    with torch.device(point.device):
        return result | _memory(subject, context)


def refuse_fallback(point: Point) -> None:
    """Raises UserError where a slow backend ran that was not asked for by name."""
    for operation, name in kernels.fallbacks().items():
        if name not in point.fallback:
            reasons = "; ".join(why for why in kernels.backends(operation).values() if why)
            raise UserError(
                f"{operation} has only its slow backend {name} here ({reasons}): mend that, or measure it all the same "
                f"with --fallback {name}"
            )


def _settle(subject: Subject) -> int | None:
    """Bytes held now besides the model: what came before does not count; resets the peak."""
    gc.collect()
    held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _owned(subject)}
    now = measure.allocated(subject.device)
    return None if now is None else now - sum(held.values())


def _owned(subject: Subject) -> list[Tensor]:
    tensors = [*subject.backbone.parameters(), *subject.backbone.buffers()]
    if subject.optimizer is not None:
        tensors += [t for state in subject.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return tensors


def _memory(subject: Subject, context: int) -> dict[str, Any]:
    """The tracked account, and the peak of the process in the same pass; None of it where it would take too long."""
    if _many_operations(subject, context):
        return {"tracked": None}
    return_freed_memory()
    before = _settle(subject)
    tracked = account(subject, context)
    process = measure.most_allocated(subject.device)
    result = {"tracked": tracked, "state_bytes": tracked["state_bytes"]}
    return result if process is None or before is None else result | {"process_bytes": process - before}


def return_freed_memory() -> None:
    """Have glibc give every larger block back when it is freed: what it keeps is no part of what the work needs."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, 2**17)


def _many_operations(subject: Subject, context: int) -> bool:
    """Whether a loop over time makes too many to follow: those of two short contexts tell."""
    short, long = (account(subject, length)["operations"] for length in (16, 24))
    return short + (long - short) / 8 * (context - 16) > MOST_OPERATIONS


def _speed(subject: Subject, context: int) -> dict[str, Any]:
    if subject.point.mode == "decode":
        return _decode_speed(subject, context)
    source, target = subject.batch(context)
    if subject.point.mode == "train":
        return _rates(subject, lambda: subject.train_step(source, target), context)
    with subject.inference():
        return _rates(subject, lambda: subject.read(source), context)


def _rates(subject: Subject, work: Callable[[], Any], context: int) -> dict[str, Any]:
    """Tokens per second: median and quartiles; the first timing does not count where there is time for others."""
    wished, begun = subject.point.seconds, time.perf_counter()
    times = [_timed(subject, work)]
    if times[0] < wished:
        times, begun = [], time.perf_counter()
    while True:
        elapsed = time.perf_counter() - begun
        if (len(times) >= LEAST and elapsed >= wished) or (times and elapsed >= PATIENCE * wished):
            return _spread([context * subject.point.rows / seconds for seconds in times])
        times.append(_timed(subject, work))


def _decode_speed(subject: Subject, context: int) -> dict[str, Any]:
    """Tokens per second of generating one token after another, each timed by itself."""
    rows, times = subject.point.rows, []
    with subject.inference():
        source, token = subject.batch(context)
        state = subject.read(source, room=DECODED)
        for _ in range(DECODED):
            begun = time.perf_counter()
            token, state = subject.generate(state, token)
            _synchronize(subject.device)
            times.append(time.perf_counter() - begun)
    return _spread([rows / seconds for seconds in times[SKIPPED:]])


def _timed(subject: Subject, work: Callable[[], Any]) -> float:
    _synchronize(subject.device)
    begun = time.perf_counter()
    work()
    _synchronize(subject.device)
    return time.perf_counter() - begun


def _spread(rates: list[float]) -> dict[str, Any]:
    low, median, high = statistics.quantiles(rates, n=4, method="inclusive") if len(rates) > 1 else rates * 3
    return {"median": median, "low": low, "high": high, "samples": len(rates)}


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
