"""What is to be profiled: the dataclass behind presets and command-line options, and its loading. Imports no torch."""

from __future__ import annotations

import dataclasses
import functools
import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments import config, resources, strict
from experiments.config import Budget
from experiments.errors import UserError
from experiments.profile.cards import CARDS, card

PRESETS = Path(__file__).parent / "presets"
Mode = Literal["train", "prefill", "decode"]
MODES = ("train", "prefill", "decode")
DECODED = 64
"""Tokens that are generated after the context has been read."""
DTYPES = ("float32", "bfloat16", "float16")
LEAST = 8
"""The shortest context: enough for a source and a target."""
_LISTS = ("archs", "pretrained", "contexts", "predicted", "modes", "fallback", "trace")
_LEAST = {"rows": 1, "vocab_size": 4, "seconds": 0}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A sweep: architectures x contexts x modes."""

    name: str = "profile"
    archs: tuple[Any, ...] = ("seq2seq", "transformer", "gqa", "mamba")
    """Names, files, published models such as llama-3-8b, variants of each `name:key=value`, or labelled entries."""
    pretrained: tuple[str, ...] = ()
    """Local Hugging Face folders of Llama, Mamba or Marian checkpoints, profiled in place of `archs`."""
    contexts: tuple[Any, ...] = ("1k", "2k", "4k", "8k", "16k")
    """Source + target tokens at which is measured, such as 4096 or 4k."""
    predicted: tuple[Any, ...] = ()
    """Further contexts at which is only predicted."""
    beyond: dict[str, Any] = field(default_factory=dict)
    """Further contexts at which one architecture is measured too: {mamba: [32k, 64k]}."""
    modes: tuple[Mode, ...] = ("train", "prefill", "decode")
    """train: an optimiser step on half source, half target; prefill: reading L; decode: 64 tokens after L."""
    rows: int = 1
    """Sequences at a time in training and prefill."""
    decode_rows: tuple[int, ...] = (1, 8)
    """Sequences at a time in decoding: a single stream, and batched."""
    vocab_size: int = 256
    """Of what is no published model."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of parameters and activations; auto = that of a published model, else float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    chunk: Any = 0
    """Read a source in pieces of so many tokens, such as 65536 or 64k, where the family can; 0 = all at once."""
    fallback: tuple[str, ...] = ()
    """Slow kernel backends that may be measured where there is no better one, by name."""
    arch: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of one architecture: {gqa: {n_kv_heads: 1}}; on the command line --arch.gqa.n_kv_heads 1."""
    budget: Budget = field(default_factory=lambda: Budget(value=1_000_000))
    """What the sizes of architectures, published models aside, are matched by."""
    predict: bool = False
    """Predict alone: measure nothing, and need neither the memory nor the device."""
    frontier: bool = False
    """Find the longest context that fits the limit: by prediction, confirmed by at most two measurements."""
    trace: tuple[str, ...] = ()
    """Write a torch profiler trace of one point, such as gqa,train,4k: Perfetto opens it, and TensorBoard with
    torch-tb-profiler installed."""
    card: str = "none"
    """Whose memory is the limit and whose peaks bound the speed in predictions: h100, h200, a100, 4090, ..."""
    seconds: float = 1.0
    """How long each speed is measured."""
    timeout: float = 120.0
    """Seconds after which a point ends as `timeout`."""
    memory_limit: str = "auto"
    """Per point, such as 16GiB, to which a CPU adds 24 MiB for what is no tensor; auto = 80 % of what is free (on a
    GPU: all of it); none = no limit."""


def load(source: str | None, overrides: Mapping[str, Any]) -> Profile:
    """The profile of a preset (by name) or YAML file, None = the defaults, with nested overrides on top.

    Raises UserError for an unknown preset, file, key, or a value of the wrong type or range.
    """
    data = config.given(source, overrides, PRESETS, lists=_LISTS)
    if isinstance(data.get("archs"), list | tuple):
        data["archs"] = [config.absolute(entry) for entry in data["archs"]]
    if isinstance(data.get("pretrained"), list | tuple):
        data["pretrained"] = [str(Path(folder).expanduser().resolve()) for folder in data["pretrained"]]
    if data.get("chunk"):
        data["chunk"] = tokens(data["chunk"], "chunk")
    profile = strict.build(Profile, data)
    check(profile)
    return profile


def check(profile: Profile) -> None:
    """Raises UserError for a value out of its range."""
    for name, least in _LEAST.items():
        config.require(profile, name, functools.partial(operator.le, least), f"at least {least}")
    config.require(profile, "timeout", lambda value: value > 0, "above 0 seconds")
    config.require(profile, "archs", bool, "a list of at least one architecture or published model")
    config.require(profile, "modes", bool, f"a list of at least one of {', '.join(MODES)}")
    config.require(profile, "decode_rows", lambda value: value and min(value) >= 1, "a list of numbers of at least 1")
    if not measured_contexts(profile):
        raise UserError("contexts must hold at least one context, such as 4k")
    for given in (profile.predicted, *profile.beyond.values()):
        lengths(given)
    if profile.card != "none":
        card(profile.card)
    resources.memory_limit(profile.memory_limit, 1)
    if profile.trace:
        traced(profile)
    if profile.frontier and not limited(profile):
        raise UserError("frontier needs a limit that contexts are to fit: --memory_limit 16GiB, or --card h100")


def measured_contexts(profile: Profile, arch: str | None = None) -> list[int]:
    """The contexts at which is measured, of one architecture's label where given; ascending."""
    return lengths([*profile.contexts, *_listed(profile.beyond.get(arch or "", ()))])


def predicted_contexts(profile: Profile, arch: str) -> list[int]:
    """The contexts at which is predicted: where it is measured, and further ones."""
    return lengths([*measured_contexts(profile, arch), *profile.predicted])


def lengths(given: Any) -> list[int]:
    """Contexts in tokens, ascending, each once. Raises UserError for one that is none."""
    return sorted({tokens(item) for item in _listed(given)})


def _listed(given: Any) -> Sequence[Any]:
    if isinstance(given, str):
        return config.split_list(given)
    return given if isinstance(given, Sequence) else [given]


def tokens(given: Any, what: str = "a context") -> int:
    """`4096`, `4k` or `1M`: a k is 1024 tokens, an M 1024 k. Raises UserError, which says what it is, for others."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", str(given).strip())
    number = float(found[1]) * {"": 1, "k": 2**10, "m": 2**20}[found[2].lower()] if found else 0.0
    if number != int(number) or not LEAST <= number <= 2**40:
        raise UserError(f"{what} must be a whole number of at least {LEAST} tokens such as 4096 or 4k, got {given!r}")
    return int(number)


def traced(profile: Profile) -> tuple[str, str, int]:
    """Label, mode and context of the point to be traced. Raises UserError for what names none."""
    if len(profile.trace) != 3 or profile.trace[1] not in MODES:
        raise UserError(f"trace must be an architecture, a mode and a context: gqa,train,4k, got {list(profile.trace)}")
    label, mode, context = profile.trace
    return label, mode, tokens(context)


def limited(profile: Profile) -> bool:
    """Whether the user has set a limit, a card's or in bytes."""
    return profile.card != "none" or profile.memory_limit not in ("auto", "none")


def limit(profile: Profile) -> int | None:
    """Bytes that must hold a point: the card's, or the memory limit; None = no limit."""
    if profile.card != "none" and profile.memory_limit == "auto":
        return CARDS[profile.card].memory
    return resources.memory_limit(profile.memory_limit, 1)


def to_dict(profile: Profile) -> dict[str, Any]:
    """Plain data that `yaml.safe_dump` writes and `load` reads back to an equal profile."""
    return config.plain(dataclasses.asdict(profile))
