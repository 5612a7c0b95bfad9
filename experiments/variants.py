"""What users write for an architecture or a task: a name, a file, `name:key=value+key=value`, or a labelled entry."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.cell import slug
from experiments.errors import UserError

Kind = Literal["arch", "task"]


@dataclass(frozen=True)
class Variant:
    """One row of the comparison: what it is called, what it is, and the settings that were given with it."""

    label: str
    spec: str
    """Name or file."""
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What `arch`, `task` and `per_task` call it: the name, or the stem of the file."""
        return Path(self.spec).stem if self.spec.endswith(".py") else self.spec

    def pick(self, table: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The settings of a table {name or label: settings} that apply here; those of the label win."""
        return {**table.get(self.name, {}), **table.get(self.label, {})}


def parse_all(entries: Sequence[Any], kind: Kind) -> list[Variant]:
    """The variants, in order. Raises UserError where one is malformed or two would share a label."""
    variants = [parse(entry, kind) for entry in entries]
    seen: dict[str, str] = {}
    for variant in variants:
        folder = slug(variant.label).lower()
        if not folder:
            raise UserError(f"the label {variant.label!r} of {kind} {variant.spec} must hold a letter or digit")
        if other := seen.get(folder):
            raise UserError(
                f"{kind}s {other!r} and {variant.label!r} would share one name; drop one, or give it its own label: "
                f"{{label: ..., {kind}: {variant.spec}}}"
            )
        seen[folder] = variant.label
    return variants


def parse(entry: Any, kind: Kind) -> Variant:
    """One variant, from `gqa:n_kv_heads=1` or {label: mqa, arch: gqa, n_kv_heads: 1}; values of text stay text."""
    if isinstance(entry, Mapping):
        return _labelled(dict(entry), kind)
    if not isinstance(entry, str) or not entry:
        raise UserError(f"{kind}s must hold names, files, name:key=value or labelled entries, got {entry!r}")
    spec, _, pairs = _split(entry)
    settings = dict(_pair(text, entry) for text in pairs.split("+")) if pairs else {}
    return Variant(_label(spec, pairs), spec, settings)


def _labelled(entry: dict[str, Any], kind: Kind) -> Variant:
    spec = entry.pop(kind, None)
    if not isinstance(spec, str):
        raise UserError(f"a labelled entry of {kind}s must name its {kind}: {{label: ..., {kind}: NAME}}, got {entry}")
    written = "+".join(f"{key}={value}" for key, value in entry.items() if key != "label")
    label = entry.pop("label", _label(spec, written))
    if not isinstance(label, str):
        raise UserError(f"the label of {kind} {spec} must be text, got {label!r}; put it in quotes, or leave it out")
    return Variant(label, spec, entry)


def _split(entry: str) -> tuple[str, str, str]:
    """Name or file, colon, pairs; a colon before `.py` belongs to the file."""
    found = re.fullmatch(r"(.+?\.py)(?:(:)(.*))?", entry)
    return (found[1], ":", found[3] or "") if found else entry.partition(":")


def _pair(text: str, entry: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise UserError(f"{entry!r} is no variant: expected name:key=value+key=value, got {text!r}")
    return key.strip(), value.strip()


def _label(spec: str, pairs: str) -> str:
    name = Path(spec).stem if spec.endswith(".py") else spec
    return f"{name}:{pairs}" if pairs else name
