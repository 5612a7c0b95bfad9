"""Work as one CUDA graph: what a GPU takes for it, without what launching it takes."""

from __future__ import annotations

import torch

from archs.decoder import Replay, capture
from experiments.bench._measure import Work


class Graphed:
    """Captured when it is first called; `eager` is the work itself."""

    def __init__(self, work: Work) -> None:
        self.eager = work
        self._replay: Replay | None = None

    def __call__(self) -> None:
        if self._replay is None:
            self._warm_up()
            self._replay = capture(self._work)
        self._replay()

    def _work(self) -> None:
        self._results = self.eager()  # kept: a graph's memory is that of what it made

    def _warm_up(self) -> None:
        """Off the default stream, as capturing is: libraries allocate and kernels are compiled."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.eager()
            self.eager()
        torch.cuda.current_stream().wait_stream(stream)
