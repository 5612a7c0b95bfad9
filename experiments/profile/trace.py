"""A trace of one point: what ran when, on which thread or stream, with shapes and memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.cell import slug
from experiments.profile.point import Point
from experiments.profile.subject import Subject, build, warm_up

TOKENS = 4
"""Tokens generated in a trace of decoding; the reading before them is not in it."""


def trace(point: Point, folder: Path) -> str:
    """Run a pass under torch's profiler; the path, below the folder, of a trace that Perfetto and TensorBoard open."""
    with torch.device(point.device):
        subject = build(point)
    warm_up(subject)
    path = folder / "traces" / f"{slug(point.label)}-{point.mode}-{point.contexts[0]}.pt.trace.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    if point.mode == "train":
        profiler = _train(subject, point.contexts[0])
    else:
        with subject.inference():
            profiler = (_prefill if point.mode == "prefill" else _decode)(subject, point.contexts[0])
    profiler.export_chrome_trace(str(path))
    return path.relative_to(folder).as_posix()


def _profiler(subject: Subject) -> profile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if subject.device.type == "cuda" else [])]
    return profile(activities=activities, record_shapes=True, profile_memory=True)


def _train(subject: Subject, context: int) -> profile:
    source, target = subject.batch(context)
    with _profiler(subject) as profiler:
        subject.train_step(source, target)
    return profiler


def _prefill(subject: Subject, context: int) -> profile:
    source, _ = subject.batch(context)
    with _profiler(subject) as profiler:
        subject.read(source)
    return profiler


def _decode(subject: Subject, context: int) -> profile:
    source, token = subject.batch(context)
    state = subject.read(source, room=TOKENS)
    with _profiler(subject) as profiler:
        for _ in range(TOKENS):
            token, state = subject.generate(state, token)
    return profiler
