"""What a cell costs: speed, memory of a training step, and the bytes that grow with context.

No Lightning loop here: what is timed is the architecture and its optimiser. Tokens are source and target columns
together; batches are of the longest trained length unless said otherwise.
"""

from __future__ import annotations

import ctypes
import gc
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

import archs
import kernels
from archs.contract import Backbone, Tokens
from experiments import data, endings, malloc, match, tasks
from experiments.cell import Cell
from experiments.data import Batch
from experiments.module import PRECISION, Learner, ran
from experiments.tasks.contract import FIRST, Task

LEAST_SAMPLES = 5
"""Timings that a median is taken of, at least."""
DECODED = 32
"""Most tokens generated per row in one timing."""
PROC = Path("/proc/self")


@dataclass
class Bench:
    """What is measured: an architecture with its optimiser, and a batch for it."""

    cell: Cell
    fabric: Fabric
    batch: Batch
    learner: Learner
    optimizer: torch.optim.Optimizer

    @property
    def backbone(self) -> Backbone:
        return self.learner.backbone

    def train_step(self) -> None:
        """One optimiser step, as in training."""
        with self.fabric.autocast():
            loss = self.learner.loss(self.batch)
        loss.backward()
        self.learner.configure_gradient_clipping(self.optimizer, self.cell.train.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @contextmanager
    def inference(self) -> Iterator[None]:
        """As a model is used: eval mode, inference mode, the cell's precision."""
        self.learner.eval()
        with torch.inference_mode(), self.fabric.autocast():
            yield
        self.learner.train()

    def timed(self, function: Callable[[], Any]) -> float:
        """Seconds that a call takes until the device is done."""
        _synchronize(self.fabric.device)
        begun = time.perf_counter()
        function()
        _synchronize(self.fabric.device)
        return time.perf_counter() - begun


def measure(cell: Cell, report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """The record's "cost" and "ran". report: told of progress."""
    kernels.forget()
    task = tasks.make(cell.task, **cell.task_config)
    fabric = Fabric(accelerator=cell.train.accelerator, devices=1, precision=PRECISION[cell.train.precision])
    batch = fabric.to_device(data.batch(task, cell.seed, "train", 0, cell.cost.batch_size, task.train_lengths[1]))
    # The peak comes first, while the process holds no freed memory that a training step could use unseen.
    bench, peak = built(cell, task, fabric, batch)
    malloc.keep_freed()  # as in training
    stages: dict[str, Callable[[], Any]] = {
        "train_tokens_per_second": lambda: throughput(bench, train_rate),
        "prefill_tokens_per_second": lambda: throughput(bench, prefill_rate),
        "decode_tokens_per_second": lambda: throughput(bench, decode_rate),
        "state_bytes": lambda: state_bytes(bench, _row(batch)),
        "contexts": lambda: contexts(bench, task),
    }
    cost: dict[str, Any] = {
        "peak_bytes": peak,
        "parameters": match.parameters(bench.backbone),
        "core_parameters": match.core_parameters(bench.backbone),
    }
    for done, (name, stage) in enumerate(stages.items()):
        report({"phase": "cost", "step": done, "steps": len(stages), "loss": None})
        cost[name] = stage()
    return {"cost": cost, "ran": ran(task, cell.train)}


def built(cell: Cell, task: Task, fabric: Fabric, batch: Batch) -> tuple[Bench, int | None]:
    """The bench, warmed up, and the peak of memory while it was built and took two training steps.

    Bytes above what the process held before; the second step holds the optimiser's state too. None where the system
    does not tell. A step on one short row goes before, so that what libraries load at first use is not counted.
    """
    tokens = torch.full((1, 2), FIRST, device=fabric.device)
    _build(cell, task, fabric, Batch(Tokens(tokens), tokens, tokens)).train_step()
    gc.collect()
    with _peak(fabric.device) as peak:
        bench = _build(cell, task, fabric, batch)
        bench.train_step()
        bench.train_step()
    return bench, peak()


def _build(cell: Cell, task: Task, fabric: Fabric, batch: Batch) -> Bench:
    torch.manual_seed(cell.seed)
    backbone = archs.build(cell.arch, task.vocab_size, **cell.arch_config)
    learner = Learner(backbone, task, cell.train, seed=cell.seed, lr=cell.lr).to(fabric.device)
    return Bench(cell, fabric, batch, learner, learner.configure_optimizers()["optimizer"])


@contextmanager
def _peak(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Gives a function that tells, afterwards, the peak of memory within, above what there was before.

    On a CPU the process's resident memory as Linux counts it, after freed memory has gone back to the system.
    """
    before = allocated(device)
    yield lambda: after if before is None or after is None else after - before
    after = most_allocated(device)


def throughput(bench: Bench, rate: Callable[[Bench], float]) -> dict[str, float]:
    """Tokens per second: the median and both quartiles of repeated timings, after two that do not count."""
    rate(bench), rate(bench)
    rates: list[float] = []
    begun = time.perf_counter()
    while len(rates) < LEAST_SAMPLES or time.perf_counter() - begun < bench.cell.cost.seconds:
        rates.append(rate(bench))
    low, median, high = statistics.quantiles(rates, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def train_rate(bench: Bench) -> float:
    """Source and target tokens per second of one optimiser step."""
    tokens = bench.batch.source.ids.numel() + bench.batch.target.numel()
    return tokens / bench.timed(bench.train_step)


def prefill_rate(bench: Bench) -> float:
    """Source tokens per second of reading the batch's sources."""
    with bench.inference():
        return bench.batch.source.ids.numel() / bench.timed(lambda: bench.backbone.encode(bench.batch.source))


def decode_rate(bench: Bench) -> float:
    """Tokens per second, over all rows, of generating one at a time after the source has been read."""
    rows, columns = bench.batch.target.shape
    steps = min(columns, DECODED)
    with bench.inference():
        state = bench.backbone.encode(bench.batch.source, room=steps)
        return rows * steps / bench.timed(lambda: _generate(bench.backbone, state, bench.batch.target[:, :1], steps))


def _generate(backbone: Backbone, state: Any, token: Tensor, steps: int) -> None:
    for _ in range(steps):
        logits, state = backbone.decode(state, token)
        token = logits[:, -1:].argmax(-1)


def state_bytes(bench: Bench, source: Tokens, target: Tensor | None = None) -> int:
    """Bytes of the state after reading one row's source (1, S), and its target (1, T) where given."""
    with bench.inference():
        state = bench.backbone.encode(source)
        return (state if target is None else bench.backbone.advance(state, target)[1]).nbytes


def contexts(bench: Bench, task: Task) -> list[dict[str, Any]]:
    """`context` of each length in turn; the first that does not fit ends the list, with its reason."""
    rows: list[dict[str, Any]] = []
    for length in sorted(bench.cell.cost.contexts):
        try:
            rows.append(context(bench, task, length))
        except Exception as error:
            if not endings.is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)
            return [*rows, {"context": length, **endings.classify(error)}]
    return rows


def context(bench: Bench, task: Task, length: int) -> dict[str, int]:
    """Bytes at a context of so many tokens, half source and half target, random ids, one row."""
    ids = torch.randint(FIRST, task.vocab_size, (1, length), device=bench.fabric.device)
    source, target = Tokens(ids[:, : length // 2].clone()), ids[:, length // 2 :].clone()
    with bench.fabric.autocast():
        saved = activation_bytes(bench.backbone, source, target)
    return {
        "context": length,
        "source": source.ids.shape[1],
        "target": target.shape[1],
        "state_bytes": state_bytes(bench, source, target),
        "activation_bytes": saved,
    }


def activation_bytes(backbone: Backbone, source: Tokens, target: Tensor) -> int:
    """Bytes that the forward pass to the features keeps for the backward pass, beside parameters and buffers.

    Readout and loss, the same for all families, are left out: a chunked loss keeps gradients where no hook sees them.
    """
    own = {tensor.untyped_storage()._cdata for tensor in [*backbone.parameters(), *backbone.buffers()]}
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        features = backbone.features(source, target)
    assert features.requires_grad
    return sum(storage.nbytes() for storage in saved.values())


def device(accelerator: str) -> torch.device:
    """The device that Lightning chooses for 'auto', 'cpu', 'gpu', ..."""
    return Fabric(accelerator=accelerator, devices=1).device


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _row(batch: Batch) -> Tokens:
    """The first source alone."""
    return Tokens(batch.source.ids[:1].clone())


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocated(device: torch.device) -> int | None:
    """Bytes held now, with the record of their peak reset; None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        (PROC / "clear_refs").write_text("5")  # resets VmHWM: proc_pid_clear_refs(5)
        return _status("VmRSS")
    return None


def most_allocated(device: torch.device) -> int | None:
    """Bytes at the peak since `allocated`; None where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        return _status("VmHWM")
    return None


def _status(field: str) -> int:
    """A field of /proc/self/status, in bytes. Raises OSError where it is not there."""
    for line in (PROC / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
