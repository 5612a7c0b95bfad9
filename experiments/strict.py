"""Plain data -> dataclass, strictly: an unknown key names the nearest known one, a wrong type what was expected."""

from __future__ import annotations

import dataclasses
import difflib
from argparse import ArgumentError
from collections.abc import Iterable, Mapping
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentParser

from experiments.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_WORDS = {int: "an integer", float: "a number", bool: "true or false", str: "text", NoneType: "null"}


def build(cls: type[T], data: Any, where: str = "") -> T:
    """An instance of a dataclass from a mapping; nested dataclasses from nested mappings, strings where YAML has them.

    where: the dotted name of what is built, for the error. What a nested mapping leaves out is as in the field's own
    default. Raises UserError for what is no field or no such value; lets through what the class itself raises.
    """
    return cls(**_values(cls, data, where))


def _values(cls: type[DataclassInstance], data: Any, where: str) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        raise UserError(f"{where or 'the experiment'} must hold settings, key: value, got {data!r}")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    check_keys(data, fields, where)
    return {key: _convert(value, hints[key], fields[key], f"{where}.{key}".lstrip(".")) for key, value in data.items()}


def check_keys(data: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises UserError for the first key that is not known."""
    for key in data:
        if key not in known:
            raise UserError(f"unknown key {key!r}{f' in {where}' if where else ''}: {nearest(key, known)}")


def nearest(word: Any, known: Iterable[str]) -> str:
    """The remedy for an unknown word: `did you mean 'steps'?`, or all that is known where nothing is near."""
    known = list(known)
    match = difflib.get_close_matches(str(word), known, n=1)
    return f"did you mean {match[0]!r}?" if match else f"expected one of {', '.join(known)}"


def _convert(value: Any, hint: Any, field: dataclasses.Field, where: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if field.default_factory is dataclasses.MISSING:
            return build(hint, value, where)
        return dataclasses.replace(field.default_factory(), **_values(hint, value, where))
    try:
        return _checked(_spelled_out(value, hint), hint)
    except ArgumentError:
        raise UserError(f"{where} must be {_describe(hint)}, got {value!r}") from None


def _checked(value: Any, hint: Any) -> Any:
    """The value as jsonargparse understands it for this type."""
    if type(value) in (get_args(hint) if get_origin(hint) is UnionType else (hint,)):
        # It is what it should be already; a parser costs milliseconds.
        return value
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser.parse_object({"value": value})["value"]


def _spelled_out(value: Any, hint: Any) -> Any:
    """What users write and jsonargparse refuses: 32 for '32', and one item where a list is expected."""
    if get_origin(hint) is Literal and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if get_origin(hint) is tuple and not isinstance(value, list | tuple | str):
        return [value]
    return value


def _describe(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(_describe, arguments))}"
    if origin is tuple:
        return f"a list, each item {_describe(arguments[0])}"
    if origin is dict:
        return "a mapping of names to settings"
    if arguments:
        return " or ".join(_describe(argument) for argument in arguments)
    return _WORDS.get(hint, str(hint))
