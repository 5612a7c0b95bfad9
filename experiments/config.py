"""What an experiment is: the dataclasses behind presets, YAML files and command-line options, and their loading."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments import strict
from experiments.errors import UserError

PRESETS = Path(__file__).parent / "presets"


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
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
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
    """The budget; within 5 % is met, beyond 10 % refused. Widths that are set for an architecture are left alone."""


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
    """Per process, such as 4GiB; auto = 80 % of what is free, shared by all (on GPUs none); none = no limit."""
    keep_checkpoints: bool = False


_LEAST: dict[str, float] = {
    "seeds": 1, "train.steps": 1, "train.batch_size": 1, "train.warmup": 0, "train.weight_decay": 0, "train.clip": 0,
    "train.label_smoothing": 0, "train.devices": 1, "train.val_every": 1, "train.val_examples": 1,
    "train.test_examples": 1, "cost.batch_size": 1, "cost.seconds": 0,
}  # fmt: skip
_ABOVE_ZERO = ("lr", "timeout", "budget.value")
_BELOW_ONE = ("train.warmup", "train.label_smoothing")


def load(source: str | None, overrides: Mapping[str, Any]) -> Experiment:
    """The experiment of a preset (by name) or YAML file, None = the defaults, with nested overrides on top.

    Mappings are merged key by key, everything else is replaced. Raises UserError for an unknown preset, file, key,
    or a value of the wrong type or range.
    """
    data = given(source, overrides, PRESETS, lists=("archs", "tasks", "lr_grid"))
    for name in ("archs", "tasks"):
        if isinstance(data.get(name), list | tuple):
            data[name] = [absolute(entry) for entry in data[name]]
    for name in ("arch", "task"):
        if isinstance(data.get(name), Mapping):
            data[name] = {item: _located(settings) for item, settings in data[name].items()}
    experiment = strict.build(Experiment, data)
    check(experiment)
    return experiment


def presets(folder: Path = PRESETS) -> list[str]:
    """The names of the presets, sorted."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def given(source: str | None, overrides: Mapping[str, Any], folder: Path, lists: Iterable[str]) -> dict[str, Any]:
    """What a preset (by name) or YAML file says, with nested overrides on top; fields in `lists` as lists.

    Raises UserError for an unknown preset or file, and for one that cannot be read.
    """
    data = merge({} if source is None else _read(source, folder), overrides)
    return data | {name: split_list(data[name]) for name in lists if isinstance(data.get(name), str)}


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain data that `yaml.safe_dump` writes and `load` reads back to an equal experiment."""
    return plain(dataclasses.asdict(experiment))


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `over` on top, nested mappings merged; neither is changed."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return merged


def split_list(text: str) -> list[str]:
    """`a,b:x=[1,2]` -> [`a`, `b:x=[1,2]`]: commas within brackets do not separate."""
    words, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth <= 0:
            words.append("")
        else:
            words[-1] += character
    return [word.strip() for word in words if word.strip()]


def check(experiment: Experiment) -> None:
    """Raises UserError for a value out of its range, and for learning rates that contradict each other."""
    for name, least in _LEAST.items():
        require(experiment, name, functools.partial(operator.le, least), f"at least {least:g}")
    for name in _ABOVE_ZERO:
        require(experiment, name, lambda value: value is None or value > 0, "above 0")
    for name in _BELOW_ONE:
        require(experiment, name, lambda value: value < 1, "below 1")
    require(
        experiment,
        "cost.contexts",
        lambda value: all(context >= 2 for context in value),
        "a list of contexts of 2 tokens or more",
    )
    require(experiment, "archs", bool, "a list of at least one architecture")
    require(experiment, "tasks", bool, "a list of at least one task")
    _check_rates(experiment)
    train = experiment.train
    if train.batch_size % train.devices:
        raise UserError(
            f"train.batch_size must be a multiple of the {train.devices} devices that share it, got {train.batch_size}"
        )


def require(settings: Any, name: str, holds: Callable[[Any], bool], expected: str) -> None:
    """Raises UserError where a field, dotted if nested, does not hold what is expected, or is not finite."""
    value = settings
    for part in name.split("."):
        value = getattr(value, part)
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, got {value}")
    if not holds(value):
        raise UserError(f"{name} must be {expected}, got {value}")


def _check_rates(experiment: Experiment) -> None:
    grid = experiment.lr_grid
    if grid and experiment.lr is not None:
        raise UserError("lr and lr_grid exclude each other: give one rate for all, or at least 4 to select from")
    if grid and (len(set(grid)) < 4 or not all(0 < rate < math.inf for rate in grid)):
        raise UserError(f"lr_grid must hold at least 4 different rates above 0, got {list(grid)}; add more, or set lr")


def _read(source: str, folder: Path) -> dict[str, Any]:
    """The mapping in a preset of the folder, or in a file."""
    path = folder / f"{source}.yaml" if source in presets(folder) else Path(source)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no preset or file {source!r}: {strict.nearest(source, presets(folder))}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the configuration {source} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"the configuration {source} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(data, Mapping):
        raise UserError(f"the configuration {source} must hold settings, key: value, got {type(data).__name__}")
    return dict(data)


def absolute(entry: Any) -> Any:
    """An entry whose file of the user's is found from any folder."""
    if isinstance(entry, Mapping):
        return _located({key: absolute(value) if key in ("arch", "task") else value for key, value in entry.items()})
    found = re.fullmatch(r"(.+?\.py)(:.*)?", entry) if isinstance(entry, str) else None
    return f"{Path(found[1]).expanduser().resolve()}{found[2] or ''}" if found else entry


def _located(settings: Any) -> Any:
    """Settings whose `path`, a file or folder of the user's, is found from any folder; the empty one is none."""
    path = settings.get("path") if isinstance(settings, Mapping) else None
    return {**settings, "path": str(Path(path).expanduser().resolve())} if path and isinstance(path, str) else settings


def plain(value: Any) -> Any:
    """Tuples as lists, at any depth."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
