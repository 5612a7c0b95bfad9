"""One measured point: its memory, the process's peak beside, and its speed.

The pass that is tracked comes first. It warms up those that are timed, and where it takes very long it is the timing.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import kernels
from experiments import malloc, measure
from experiments.errors import UserError
from experiments.profile.account import account, followed
from experiments.profile.config import DECODED
from experiments.profile.limits import tighten
from experiments.profile.point import Point
from experiments.profile.subject import STEPS, Subject, build, warm_up

LEAST = 3
"""Timings that a median is taken of, unless each takes very long."""
PATIENCE = 6
"""Times the wished seconds, after which fewer timings must do."""
MOST_OPERATIONS = 40_000
"""More operations than that are not tracked."""
FOLLOWING = 1e-4
"""Seconds that following an operation costs, at most."""
SPARE = 0.5
"""Share of the memory limit up to which a pass may keep what it frees: blocks that do not fit the next ones add up."""
SMALL = 0.02
"""Share of a pass's time that following may take for the pass to count as a timing."""

Report = Callable[[dict[str, Any]], None]


def measured(point: Point, memory_limit: int | None, report: Report) -> dict[str, Any]:
    """The record's "result" for the point's one context. report: told of what is known already.

    memory_limit: bytes, see `worker.work`; where the pass comes near it, the timed ones give back what they free too.

    Raises UserError where a slow kernel would be measured that nobody asked for.
    """
    kernels.forget()
    context = point.contexts[0]
    with torch.device(point.device):
        subject = build(point)
    warm_up(subject)
    refuse_fallback(point)
    result: dict[str, Any] = {
        "context": context,
        "parameters": sum(parameter.numel() for parameter in subject.backbone.parameters()),
    }
    followable = not _many_operations(subject, context)
    malloc.return_freed()
    process = _Process(subject)
    if memory_limit is not None and subject.device.type == "cpu":
        tighten(memory_limit, process.own)
    begun = time.perf_counter()
    tracked, reached = _passed(subject, context, process.end_reading, followable)
    _synchronize(subject.device)
    elapsed = time.perf_counter() - begun
    result |= {"tracked": tracked, "process_bytes": process.peak(), "process_before_bytes": process.reading}
    if tracked:
        result["state_bytes"] = tracked["state_bytes"]
    report({"result": result})
    if memory_limit is None or max(process.peak() or 0, process.reading or 0) < SPARE * memory_limit:
        malloc.keep_freed()
    following = FOLLOWING * tracked["operations"] if tracked else 0.0
    return result | {"speed": _speed(subject, context, elapsed if following < SMALL * elapsed else 0.0, reached)}


def refuse_fallback(point: Point) -> None:
    """Raises UserError where a slow backend ran that was not asked for by name."""
    for operation, name in kernels.fallbacks().items():
        if name not in point.fallback:
            reasons = "; ".join(why for why in kernels.backends(operation).values() if why)
            raise UserError(
                f"{operation} has only its slow backend {name} here ({reasons}): mend that, or measure it all the same "
                f"with --fallback {name}"
            )


def _passed(
    subject: Subject, context: int, between: Callable[[], None], followable: bool
) -> tuple[dict[str, Any] | None, tuple[Tensor, Any] | None]:
    """`followed`, with no account where there are too many operations."""
    if followable:
        return followed(subject, context, between=between)
    return None, subject.once(context, between)


class _Process:
    """The process's peak, the model included but nothing else that came before; None where the system does not tell."""

    def __init__(self, subject: Subject) -> None:
        gc.collect()
        held = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in _owned(subject)}
        now, self.own = measure.allocated(subject.device), sum(held.values())
        self.device = subject.device
        self.before = None if now is None else now - self.own
        self.reading: int | None = None
        """While reading, where decoding followed."""

    def end_reading(self) -> None:
        """From here the peak is decoding's: reading, which takes more, would hide it."""
        self.reading = self.peak()
        measure.allocated(self.device)

    def peak(self) -> int | None:
        """Since the reading ended, or since the start."""
        most = measure.most_allocated(self.device)
        return None if most is None or self.before is None else most - self.before


def _owned(subject: Subject) -> list[Tensor]:
    tensors = [*subject.backbone.parameters(), *subject.backbone.buffers()]
    if subject.optimizer is not None:
        tensors += [t for state in subject.optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
    return tensors


def _many_operations(subject: Subject, context: int) -> bool:
    """Whether a loop over time makes too many to follow: those of two short contexts tell."""
    short, long = (account(subject, length)["operations"] for length in (16, 24))
    return short + (long - short) / 8 * (context - 16) > MOST_OPERATIONS


def _speed(subject: Subject, context: int, elapsed: float, reached: tuple[Tensor, Any] | None) -> dict[str, Any]:
    """Tokens per second. elapsed: of a pass that may count as a timing; reached: where decoding goes on."""
    if reached is not None:
        return _decode_speed(subject, *reached)
    if elapsed > PATIENCE * subject.point.seconds:
        return _spread([context * subject.point.rows / elapsed])
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


def _decode_speed(subject: Subject, token: Tensor, state: Any) -> dict[str, Any]:
    """Tokens per second of generating one token after another, each timed by itself."""
    rates = []
    with subject.inference():
        for _ in range(DECODED - STEPS):
            begun = time.perf_counter()
            token, state = subject.generate(state, token)
            _synchronize(subject.device)
            rates.append(subject.point.rows / (time.perf_counter() - begun))
    return _spread(rates)


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
