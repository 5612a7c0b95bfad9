"""The house rules a reader relies on: which way imports run, how long things get, what every file says of itself."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1]
PACKAGES = ("archs", "kernels", "experiments")
SOURCES = sorted(file for package in PACKAGES for file in (HOUSE / package).rglob("*.py"))
TESTS = sorted((HOUSE / "tests").rglob("*.py"))
MAX_FILE, MAX_FUNCTION = 350, 60


def name(file: Path) -> str:
    return str(file.relative_to(HOUSE))


def imported(file: Path) -> Iterator[str]:
    """Every absolute module that a file imports, at any depth; `from a import b` gives a and a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def roots(file: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported(file)}


def functions(file: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield f"{name(file)}:{node.lineno} {node.name}", node.end_lineno - node.lineno + 1


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("kernels", {"archs", "experiments", "lightning", "pytorch_lightning"}),
        ("archs", {"experiments", "lightning", "pytorch_lightning"}),
        ("experiments", {"tests"}),
    ],
)
def test_imports_run_one_way(package: str, forbidden: set[str]) -> None:
    files = sorted((HOUSE / package).rglob("*.py"))
    assert files
    wrong = {name(file): roots(file) & forbidden for file in files if roots(file) & forbidden}
    assert not wrong


def test_no_import_is_relative() -> None:
    """A relative import would slip past the rule above."""
    relative = [
        f"{name(file)}:{node.lineno}"
        for file in SOURCES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not relative


@pytest.mark.parametrize(
    "module", ["cli", "config", "doctor", "inventory", "ledger", "options", "report", "report.figures", "tensorboard"]
)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, experiments.{module}; print([name for name in ('torch', 'lightning') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("[]", "", 0)


def test_files_fit_in_a_head() -> None:
    lengths = {name(file): len(file.read_text().splitlines()) for file in SOURCES + TESTS}
    assert not {file: lines for file, lines in lengths.items() if lines > MAX_FILE}


def test_functions_are_small() -> None:
    lengths = dict(item for file in SOURCES + TESTS for item in functions(file))
    assert not {function: lines for function, lines in lengths.items() if lines > MAX_FUNCTION}


def test_every_module_says_what_it_is() -> None:
    silent = [name(file) for file in SOURCES if file.read_text() and not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


def public(file: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """What a module offers; the signatures of an overloaded function are not what its docstring belongs to."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            decorators = {item.id for item in node.decorator_list if isinstance(item, ast.Name)}
            if "overload" not in decorators:
                yield node


def test_every_public_function_and_class_has_a_docstring() -> None:
    silent = [
        f"{name(file)}:{node.lineno} {node.name}"
        for file in SOURCES
        for node in public(file)
        if not ast.get_docstring(node)
    ]
    assert not silent


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=HOUSE, capture_output=True, text=True, timeout=60, check=False
    ).stdout.splitlines()
    return [HOUSE / line for line in listed if (HOUSE / line).is_file()]


def test_nothing_names_the_machine_it_was_written_on() -> None:
    files = tracked()
    if not files:
        pytest.skip("not a git checkout")
    path = re.compile(rb"(?<![\w.])/(root|home|Users|work|opt|mnt)/\w")
    texts = [file for file in files if file.suffix not in {".png", ".svg"}]
    assert not [name(file) for file in texts if path.search(file.read_bytes())]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_wheel_holds_sources_presets_and_styles(package: str) -> None:
    settings = tomllib.loads((HOUSE / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    packed = {path for pattern in settings.get(package, ()) for path in (HOUSE / package).glob(pattern)}
    files = {path for path in (HOUSE / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == packed


def test_every_preset_loads() -> None:
    from experiments import config

    presets = sorted((HOUSE / "experiments" / "presets").glob("*.yaml"))
    assert {"quick", "smoke", "standard"} <= {preset.stem for preset in presets}
    for preset in presets:
        experiment = config.load(preset.stem, {})
        assert experiment.name == preset.stem
        assert preset.read_text().startswith("# "), f"{preset.name} starts with the line that `archlab list` shows"


def test_a_preset_that_selects_has_the_seeds_and_rates_for_it() -> None:
    from experiments import config

    selecting = [config.load(preset, {}) for preset in ("quick", "smoke", "standard")]
    for experiment in (experiment for experiment in selecting if experiment.lr_grid):
        assert len(experiment.lr_grid) >= 4
        assert experiment.seeds >= 3
    assert any(experiment.lr_grid for experiment in selecting)
