"""A trace of one point: what ran when, on which thread or stream, with shapes and memory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from experiments.cell import slug
from experiments.profile.point import Point
from experiments.profile.subject import build, warm_up


def trace(point: Point, folder: Path) -> str:
    """Run a pass under torch's profiler; the path, below the folder, of a trace that Perfetto and TensorBoard open."""
    with torch.device(point.device):
        subject = build(point)
    warm_up(subject)
    path = folder / "traces" / f"{slug(point.label)}-{point.mode}-{point.contexts[0]}.pt.trace.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if subject.device.type == "cuda" else [])]
    with profile(activities=activities, record_shapes=True, profile_memory=True) as profiler:
        subject.once(point.contexts[0])
    profiler.export_chrome_trace(str(path))
    return path.relative_to(folder).as_posix()
