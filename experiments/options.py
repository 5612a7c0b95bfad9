"""The options of the command: those of `compare` are the fields of Experiment, so every key can be overridden.

Imports no torch: `--help` must be fast.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import re
from argparse import ArgumentError
from collections.abc import Callable, Sequence
from typing import Any, get_args, get_origin, get_type_hints

import docstring_parser
from jsonargparse import ArgumentParser, get_loader
from yaml import YAMLError

from experiments import config, strict
from experiments.errors import UserError

_TABLES = {"compare": ("arch", "task", "per_task"), "profile": ("arch",)}
"""Of a command, the fields that hold {name: {key: value}}: on the command line --arch.NAME.KEY VALUE."""
_LISTS = {"profile": ("beyond",)}
"""The fields that hold {name: values}: on the command line --beyond.NAME A,B."""


def parse(argv: list[str]) -> tuple[str, dict[str, Any]]:
    """The command and what was given to it, without defaults: dotted options nested, settings of items included.

    Raises UserError for what it cannot understand, SystemExit after --help and --version.
    """
    parser = build_parser(argv[0] if argv else None)
    if not argv:
        parser.print_help()
        raise SystemExit(2)
    argv, settings = _take_settings(argv, _TABLES.get(argv[0], ()), _LISTS.get(argv[0], ()))
    argv = _spelled(parser, argv)
    _check_words(parser, argv)
    try:
        given = parser.parse_args(argv, defaults=False).as_dict()
    except ArgumentError as error:
        raise UserError(_sentence(str(error))) from error
    command = given["subcommand"]
    return command, {**given.get(command, {}), **settings}


def build_parser(command: str | None = None) -> ArgumentParser:
    """The parser of all commands, with the options of `command` alone: building those of `compare` takes 0.1 s.

    The options of `compare` are the fields of Experiment.
    """
    parser = _parser(prog="archlab", description="Sequence architectures head to head: quality, memory, throughput.")
    parser.add_argument("--version", action="version", version=f"archlab {importlib.metadata.version('archlab')}")
    commands = parser.add_subcommands(required=True, metavar="COMMAND")
    for name, (fill, description) in {
        "compare": (_fill_compare, "architectures x tasks x seeds head to head, then the report"),
        "profile": (_fill_profile, "memory and speed against context length, measured and predicted"),
        "report": (_fill_folder, "build the report of a folder again"),
        "tensorboard": (_fill_tensorboard, "open the curves of a folder, on this machine only"),
        "bench": (_fill_bench, "kernels against their peers and this machine's measured ceilings"),
        "verify": (_fill_verify, "published behaviours, reproduced here and held to their tolerances"),
        "list": (None, "architectures, tasks, kernels and presets"),
        "doctor": (None, "what runs here, and the one command that mends each miss"),
    }.items():
        options = _parser(description=description)
        if fill and name == command:
            fill(options)
        commands.add_subcommand(name, options, help=description)
    return parser


def _parser(**settings: Any) -> ArgumentParser:
    return ArgumentParser(exit_on_error=False, allow_abbrev=False, **settings)


def _fill_folder(parser: ArgumentParser) -> None:
    shown = "the --out of a comparison or profile, such as runs/quick"
    parser.add_argument("folder", type=str, metavar="DIR", help=shown)


def _fill_tensorboard(parser: ArgumentParser) -> None:
    _fill_folder(parser)
    parser.add_argument("--port", type=int, help="by default 6006, or the next free one")


def _fill_bench(parser: ArgumentParser) -> None:
    parser.add_argument("--only", type=CommaList(str), metavar="A,B", help="these benchmarks, by default all")
    parser.add_argument("--device", type=str, help="cpu, the default, or cuda")
    parser.add_argument("--out", type=str, metavar="FILE", help="the JSON file, by default runs/bench.json")


def _fill_verify(parser: ArgumentParser) -> None:
    parser.add_argument("--only", type=CommaList(str), metavar="A,B", help="these behaviours, by default all")
    parser.add_argument("--out", type=str, metavar="DIR", help="where it is recorded, by default runs/verify")


def _fill_profile(parser: ArgumentParser) -> None:
    from experiments.profile.config import Profile

    parser.usage = "archlab profile [--config FILE|PRESET] [--out DIR] [--KEY VALUE] ..."
    parser.add_argument("--config", type=str, metavar="FILE|PRESET", help="what to profile, such as quick")
    parser.add_argument("--out", type=str, metavar="DIR", help="where it is recorded, by default runs/NAME")
    parser.add_argument(
        "--retry",
        type=CommaList(str),
        metavar="A,B",
        help="run again what ended as failed, oom or timeout, or is stale",
    )
    parser.add_argument_group("settings of one architecture", "--arch.NAME.KEY VALUE")
    parser.add_argument_group("further contexts of one architecture", "--beyond.NAME 32k,64k")
    _add_fields(parser, Profile(), flags=("predict", "frontier"))


def _fill_compare(parser: ArgumentParser) -> None:
    parser.usage = "archlab compare [--config FILE|PRESET] [--out DIR] [--KEY VALUE] ..."
    parser.add_argument("--config", type=str, metavar="FILE|PRESET", help="what to run; `archlab list` shows presets")
    parser.add_argument("--out", type=str, metavar="DIR", help="where it is recorded, by default runs/NAME")
    parser.add_argument("--jobs", type=int, help="cells trained at a time, by default one per GPU or core")
    parser.add_argument(
        "--retry",
        type=CommaList(str),
        metavar="A,B",
        help="run again what ended as failed, oom, nan or timeout, or is stale",
    )
    parser.add_argument("--dry-run", action="store_true", help="show the cells, parameters and an estimate, run none")
    parser.add_argument_group(
        "settings of one item",
        "--arch.NAME.KEY VALUE, --task.NAME.KEY VALUE, and --per_task.NAME.KEY VALUE for a field of train",
    )
    _add_fields(parser, config.Experiment())


def _add_fields(parser: ArgumentParser, defaults: Any, prefix: str = "", flags: Sequence[str] = ()) -> None:
    """One option per field of a dataclass, nested ones dotted, with the field's docstring as help.

    flags: fields that are set by the option alone, without a value.
    """
    hints = get_type_hints(type(defaults))
    parsed = docstring_parser.parse_from_object(type(defaults))
    helps = {parameter.arg_name: parameter.description for parameter in parsed.params}
    group = parser.add_argument_group(prefix.rstrip(".") or "the experiment", parsed.short_description)
    nested = []
    for field in dataclasses.fields(defaults):
        hint, name, default = hints[field.name], f"{prefix}{field.name}", getattr(defaults, field.name)
        if dataclasses.is_dataclass(hint):
            nested.append((default, f"{name}."))
        elif get_origin(hint) is not dict:  # those of items are taken before, see `_take_settings`
            group.add_argument(
                f"--{name}",
                **({"action": "store_true"} if field.name in flags else _kind(hint)),
                help=helps.get(field.name) or field.name.replace("_", " "),
                default=default,
            )
    for inner, name in nested:
        _add_fields(parser, inner, name)


def _kind(hint: Any) -> dict[str, Any]:
    """The argparse type of a field: comma lists for tuples, jsonargparse's own for the rest."""
    if get_origin(hint) is not tuple:
        return {"type": hint}
    item = get_args(hint)[0]
    # What a Literal allows is checked with the rest of the configuration.
    return {"type": CommaList(str if item is Any or get_origin(item) is not None else item), "metavar": "A,B"}


class CommaList:
    """A parser of `a,b` into a tuple of items; `[a, b]` is read as YAML, which also allows labelled entries."""

    def __init__(self, item: Callable[[str], Any]) -> None:
        self.item = item
        self.__name__ = repr(self)

    def __repr__(self) -> str:
        return f"comma list of {getattr(self.item, '__name__', self.item)}"

    def __call__(self, value: Any) -> tuple[Any, ...]:
        """Raises ValueError where an item is none."""
        if isinstance(value, str):
            value = _yaml(value) if value.startswith("[") else config.split_list(value)
        if not isinstance(value, list | tuple):
            raise ValueError(f"no list: {value}")
        return tuple(self.item(word) if isinstance(word, str) else word for word in value)


def _take_settings(argv: list[str], tables: Sequence[str], lists: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Take --arch.NAME.KEY VALUE and --beyond.NAME A,B out of the words: any name, so no option can be declared."""
    rest: list[str] = []
    settings: dict[str, Any] = {}
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        table = option[2:].split(".")[0]
        if not option.startswith("--") or table not in (*tables, *lists):
            rest.append(word)
            continue
        name, _, key = option.removeprefix(f"--{table}").removeprefix(".").rpartition(".")
        expected = f"--{table}.NAME.KEY VALUE" if table in tables else f"--{table}.NAME A,B"
        if not key or (table in tables and not name):
            raise UserError(f"{option} is no setting: expected {expected}")
        value = value if equals else next(words, "--")
        if value.startswith("--"):
            raise UserError(f"{option} expects a value: {expected}")
        if table in tables:
            settings.setdefault(table, {}).setdefault(name, {})[key] = _value(value)
        else:
            settings.setdefault(table, {})[f"{name}.{key}" if name else key] = config.split_list(value)
    return rest, settings


def _value(text: str) -> Any:
    """YAML, so 1e-3, true, null and [1, 2] have types; and 8,16 is a list of numbers."""
    if re.fullmatch(r"[\d.eE+-]+(,[\d.eE+-]+)+", text):
        return [_yaml(word) for word in text.split(",")]
    return _yaml(text)


def _yaml(text: str) -> Any:
    """What YAML makes of it; text that is none, such as a file's odd name, stays text."""
    try:
        return get_loader("yaml")(text)
    except YAMLError:
        return text


def _spelled(parser: ArgumentParser, argv: list[str]) -> list[str]:
    """The words with options as they are declared, where the user wrote - for _: --memory-limit is --memory_limit."""
    command = commands(parser).get(argv[0]) if argv else None
    known = option_names(command) if command else []

    def spelled(word: str) -> str:
        option, *value = word.split("=", 1)
        declared = f"--{option[2:].replace('-', '_')}"
        return "=".join([declared, *value]) if option not in known and declared in known else word

    return [spelled(word) if word.startswith("--") else word for word in argv]


def _check_words(parser: ArgumentParser, argv: list[str]) -> None:
    """Name the nearest command or option for a word that is none. argparse only says that it is not recognised."""
    known = commands(parser)
    command = argv[0] if argv and not argv[0].startswith("-") else None
    if command is not None and command not in known:
        raise UserError(f"unknown command {command!r}: {strict.nearest(command, known)}")
    options = option_names(known[command] if command else parser)
    for word in argv:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in options:
            tables = [f"--{table}.NAME.KEY" for table in _TABLES.get(command or "", ())]
            lists = [f"--{table}.NAME" for table in _LISTS.get(command or "", ())]
            raise UserError(f"unknown option {option}: {strict.nearest(option, options + tables + lists)}")


def commands(parser: ArgumentParser) -> dict[str, ArgumentParser]:
    """The parser of each command, by name."""
    return next(dict(action.choices or {}) for action in parser._actions if action.dest == "subcommand")


def option_names(parser: ArgumentParser) -> list[str]:
    """The long options of a parser, in the order of its help."""
    return [name for action in parser._actions for name in action.option_strings if name.startswith("--")]


def _sentence(message: str) -> str:
    """argparse's and jsonargparse's complaints, worded as ours."""
    message = " ".join(message.split())
    message = re.sub(r'^Parser key "([^"]+)": ', r"--\1: ", message)
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .* Given value: ",
        lambda found: f"expected {found[1].replace('NoneType', 'null').replace(', ', ' or ')}, got ",
        message,
    )
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r"Expected an? (int|float|bool|str)\.", r"expected \1,", message)
    message = re.sub(r"Expected an? typing\.Literal\[(.*?)\]\.", r"expected one of \1,", message)
    message = re.sub(r"the following arguments are required: \w+\.folder", "expected a folder: DIR", message)
    return (
        message.removeprefix("argument ").replace("Got value:", "got").replace("unrecognized arguments:", "unexpected")
    )
