"""What an experiment is: the dataclasses behind presets, YAML files and command-line options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Train:
    """How every architecture is trained; equal for all in one experiment, per task at most."""

    steps: int = 1000
    """Optimiser steps; fewer when solved."""
    batch_size: int = 64
    """Examples per step; a divisor of 256 keeps training batches unpadded."""
    warmup: float = 0.1
    """Fraction of the steps over which the learning rate rises linearly; cosine to zero afterwards."""
    weight_decay: float = 0.1
    """AdamW's, on matrices only: never on norms, biases, A, D or dt bias."""
    clip: float = 1.0
    """Largest gradient norm; 0 = no clipping."""
    label_smoothing: float = 0.0
    precision: Literal["32", "bf16-mixed"] = "32"
    accelerator: str = "auto"
    devices: int = 1
    strategy: str = "auto"
    val_every: int = 100
    """Steps between validations."""
    val_examples: int = 256
    """Validation examples per length."""
    test_examples: int = 512
    """Test examples per length."""
    stop_when_solved: bool = True
    """Stop at validation exact match >= 0.99 at two evaluations running."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the architectures are matched by."""

    by: Literal["parameters", "flops", "state", "none"] = "parameters"
    """Trainable parameters without embedding and readout; FLOPs per token; state bytes; or no matching."""
    value: float = 100_000
    """The budget; within 5 % is met, beyond 10 % refused."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The short pass after training that measures memory and speed."""

    contexts: tuple[int, ...] = (128, 256, 512, 1024)
    """Source + target tokens at which state and activation bytes are measured."""
    batch_size: int = 16
    seconds: float = 1.0
    """How long each throughput is measured."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A head-to-head run: the grid of architectures x tasks x seeds (x learning rates)."""

    name: str = "compare"
    archs: tuple[Any, ...] = ("seq2seq", "transformer", "gqa", "mamba")
    """Names, files, variants `name:key=value+key=value`, or {label: ..., arch: ..., key: value} entries."""
    tasks: tuple[Any, ...] = ("reverse", "recall")
    """Names, files, variants, or {label: ..., task: ..., key: value} entries."""
    seeds: int = 3
    lr: float | None = None
    """One learning rate for all; by default each architecture's own declared `Config.learning_rate`."""
    lr_grid: tuple[float, ...] = ()
    """Select the rate on validation among these (at least 4), per architecture and task; empty = no selection."""
    train: Train = field(default_factory=Train)
    per_task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Fields of `train`, or `seeds`, that differ for one task: {text: {steps: 400, seeds: 1}}."""
    arch: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of one architecture: {gqa: {n_kv_heads: 1}}; on the command line --arch.gqa.n_kv_heads 1."""
    task: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of one task: {text: {path: FILE}}; on the command line --task.text.path FILE."""
    budget: Budget = field(default_factory=Budget)
    cost: Cost = field(default_factory=Cost)
    timeout: float = 3600.0
    """Seconds after which a cell ends as `timeout`."""
    memory_limit: str = "auto"
    """Per cell, such as 4GiB; auto = 80 % of what is free, divided by the jobs."""
    keep_checkpoints: bool = False
