"""`archlab doctor`: what runs on this machine, and the one command that mends each miss."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from experiments import resources

_HOUSE = Path(__file__).resolve().parents[1]
_ROOM = 2**28
"""Bytes on disk that a comparison may come to: records, events, figures."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at. Only a miss that is `required` makes archlab unusable."""

    name: str
    found: str
    ok: bool = True
    required: bool = False
    remedy: str | None = None
    """The command that mends it; None where no command can."""


def show_health() -> int:
    """Print every finding; 1 where something required is missing or broken, else 0."""
    from rich.console import Console

    console = Console(highlight=False)
    findings = list(examine())
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        colour, word = _verdict(finding)
        console.print(f"[{colour}]{word:<6}[/{colour}]", end=" ")
        console.print(f"{finding.name:<{width}}  {finding.found}", markup=False, soft_wrap=True)
        if finding.remedy and not finding.ok:
            console.print(f"{'':{width + 7}}  mend: {finding.remedy}", markup=False, soft_wrap=True)
    broken = [finding.name for finding in findings if finding.required and not finding.ok]
    console.print(f"broken: {', '.join(broken)}" if broken else "all that archlab needs is here", markup=False)
    return 1 if broken else 0


def _verdict(finding: Finding) -> tuple[str, str]:
    if finding.ok:
        return "green", "ok"
    return ("red", "BROKEN") if finding.required else ("yellow", "miss")


def examine() -> Iterator[Finding]:
    """Every finding, from the interpreter up. A part that raises is itself a finding, never the end of the listing."""
    parts: list[Callable[[], Iterator[Finding]]] = [_python, _dependencies, _name_clash, _compiler, _backends, _devices]
    for part in [*parts, _on_gpus, _memory, _corpus]:
        try:
            yield from part()
        except Exception as error:
            yield Finding(part.__name__.strip("_"), f"{type(error).__name__}: {error}", ok=False, required=True)


def _python() -> Iterator[Finding]:
    wanted = importlib.metadata.metadata("archlab")["Requires-Python"]
    found = platform.python_version()
    yield Finding(
        "Python",
        f"{found} at {sys.executable}, wanted {wanted}",
        ok=SpecifierSet(wanted).contains(found),
        required=True,
        remedy="make clean compare PYTHON=python3.11",
    )


def _dependencies() -> Iterator[Finding]:
    """Every dependency of pyproject.toml: there, in its bounds, and (the two heavy ones) importable."""
    for line in importlib.metadata.requires("archlab") or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield _dependency(requirement)


def _dependency(requirement: Requirement) -> Finding:
    remedy = f"{sys.executable} -m pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = importlib.metadata.version(requirement.name)
        if requirement.name in ("torch", "lightning"):
            importlib.import_module(requirement.name)
    except importlib.metadata.PackageNotFoundError:
        return Finding(requirement.name, "not installed", ok=False, required=True, remedy=remedy)
    except Exception as error:
        return Finding(requirement.name, f"does not import: {error}", ok=False, required=True, remedy=remedy)
    ok = requirement.specifier.contains(found, prereleases=True)
    wanted = "" if ok else f", wanted {requirement.specifier}"
    return Finding(requirement.name, f"{found}{wanted}", ok=ok, required=True, remedy=remedy)


def _name_clash() -> Iterator[Finding]:
    """Hugging Face's distribution `kernels` installs a package of the same name as archlab's."""
    kernels = importlib.import_module("kernels")
    place = Path(kernels.__file__ or "").resolve().parent
    remedy = f"{sys.executable} -m pip uninstall kernels, then install archlab again"
    if place != _HOUSE / "kernels" or not hasattr(kernels, "operations"):
        yield Finding("package kernels", f"{place} is not archlab's", ok=False, required=True, remedy=remedy)
    elif (version := _installed("kernels")) is not None:
        found = f"archlab's, but the unrelated distribution kernels {version} is installed too and may take its place"
        yield Finding("package kernels", found, ok=False, remedy=remedy)
    else:
        yield Finding("package kernels", f"archlab's, at {place}")


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> Iterator[Finding]:
    path = shutil.which("g++")
    if path is None:
        remedy = "xcode-select --install" if sys.platform == "darwin" else "apt-get install g++"
        yield Finding("C++ compiler", "no g++: the compiled kernels cannot run", ok=False, remedy=remedy)
        return
    version = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30).stdout
    yield Finding("C++ compiler", version.partition("\n")[0] or path)


def _backends() -> Iterator[Finding]:
    """Asking compiles what must be compiled; every reason ends in its own remedy. Only the references must run."""
    from experiments import inventory

    for operation, backend, why in inventory.backends():
        yield Finding(f"{operation}/{backend}", why or "runs", ok=why is None, required=backend == "reference")


def _devices() -> Iterator[Finding]:
    import torch

    yield Finding("device cpu", f"{_processor()}, {resources.cores()} cores for this process")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield Finding(f"device cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.1f} GiB")
    if torch.backends.mps.is_available():
        yield Finding("device mps", "Apple GPU")


def _on_gpus() -> Iterator[Finding]:
    """What `auto` takes on a GPU for each operation, and why not what it would rather take there."""
    import torch

    import kernels

    if not torch.cuda.is_available():
        yield Finding("kernels on GPUs", "torch sees no GPU here: every operation runs on the CPU")
        return
    for operation in kernels.operations():
        reasons = kernels.backends(operation, torch.bfloat16, "cuda")
        yield Finding(f"{operation} on cuda", _chosen(reasons))


def _chosen(reasons: dict[str, str | None]) -> str:
    """The first backend that can run, and why those before it cannot; that one for CPUs cannot goes without saying."""
    rather = [f"{name}: {why}" for name, why in itertools.takewhile(lambda item: item[1], reasons.items())]
    chosen = next(name for name, why in reasons.items() if why is None)
    return "; not ".join([chosen, *(reason for reason in rather if not reason.startswith("cpu: "))])


def _processor() -> str:
    """Linux names the model in /proc/cpuinfo only."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())


def _memory() -> Iterator[Finding]:
    free, disk = resources.free_memory(), shutil.disk_usage(".").free
    yield Finding("memory", f"{free / 2**30:.1f} GiB free; the cells of a comparison share {resources.SHARE:.0%} of it")
    remedy = "archlab compare --out DIR, on a disk with room"
    yield Finding("disk", f"{disk / 2**30:.1f} GiB free here", ok=disk > _ROOM, remedy=remedy)


def _corpus() -> Iterator[Finding]:
    from experiments.tasks import corpus, text

    try:
        found = corpus.read("", text.Config.max_bytes)
    except ValueError as error:
        remedy = "archlab compare --task.text.path FILE_OR_FOLDER"
        yield Finding("text corpus", str(error), ok=False, remedy=remedy)
        return
    size = f"{len(found.data) / 1e6:.1f} MB in {found.files} files"
    yield Finding("text corpus", f"{size} of Python's standard library, sha256 {found.digest[:12]}")
