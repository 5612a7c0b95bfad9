"""`archlab list` and `archlab doctor`, on this machine and on machines where something is amiss."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from conftest import Archlab

import archs
import kernels
from experiments import config, doctor, inventory, tasks, verify


def test_list_shows_everything_with_a_line_on_it(archlab: Archlab) -> None:
    done = archlab("list")
    assert (done.returncode, done.stderr) == (0, "")
    lines = {line.split()[0]: line.split(maxsplit=1)[1:] for line in done.stdout.splitlines() if line.startswith("  ")}
    backends = [
        f"{operation}/{backend}" for operation in kernels.operations() for backend in kernels.backends(operation)
    ]
    assert set(lines) == {*archs.names(), *tasks.names(), *backends, *verify.names(), *config.presets()}
    assert all(lines.values())


def test_doctor_finds_this_environment_sound(archlab: Archlab) -> None:
    done = archlab("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "BROKEN" not in done.stdout
    for name in ("Python", "torch", "lightning", "selective_scan/reference", "device cpu", "memory", "text corpus"):
        assert f" {name} " in done.stdout
    assert done.stdout.endswith("all that archlab needs is here\n")


@pytest.fixture
def impostor(tmp_path: Path) -> Path:
    """A place on the path with what `pip install kernels` leaves there: not archlab's."""
    described = tmp_path / "kernels-0.9.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.9.0\n")
    return tmp_path


def test_doctor_warns_of_the_other_distribution(impostor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(impostor)
    [finding] = [finding for finding in doctor.examine() if finding.name == "package kernels"]
    assert "the unrelated distribution kernels 0.9.0 is installed too" in finding.found
    assert (finding.ok, finding.required) == (False, False)
    assert finding.remedy == f"{sys.executable} -m pip uninstall kernels, then install archlab again"


def test_doctor_names_a_package_that_took_the_place_of_ours(archlab: Archlab, impostor: Path) -> None:
    (impostor / "kernels").mkdir()
    (impostor / "kernels" / "__init__.py").write_text("def get_kernel(): ...\n")
    done = archlab("doctor", PYTHONPATH=str(impostor))
    assert done.returncode == 1
    assert f"{impostor / 'kernels'} is not archlab's" in done.stdout
    assert "broken: package kernels" in done.stdout
    listed = archlab("list", PYTHONPATH=str(impostor))
    assert (listed.returncode, listed.stdout) == (2, "")
    assert listed.stderr.startswith("archlab: the package kernels at ")
    assert listed.stderr.count("\n") == 1


def test_doctor_without_a_compiler(archlab: Archlab, tmp_path: Path) -> None:
    """The compiled kernels are missed, with the command that mends it; archlab still works."""
    (tmp_path / "git").symlink_to(shutil.which("git") or sys.executable)
    done = archlab("doctor", PATH=str(tmp_path))
    assert done.returncode == 0
    assert "miss   C++ compiler" in done.stdout
    assert "mend: apt-get install g++" in done.stdout
    assert "miss   selective_scan/cpu" in done.stdout


def test_doctor_says_what_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def findings() -> dict[str, str]:
        return {finding.name: finding.found for finding in doctor.examine()}

    reasons = {"cpu": "it serves CPU tensors", "cuda": "no NVRTC", "triton": None, "reference": None}
    monkeypatch.setattr(kernels, "backends", lambda operation, *tensors: reasons)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no GPU" in findings()["kernels on GPUs"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert findings()["selective_scan on cuda"] == "triton; not cuda: no NVRTC"


def test_a_part_that_raises_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise OSError("no such thing")

    monkeypatch.setattr(doctor, "_memory", broken)
    [finding] = [finding for finding in doctor.examine() if finding.name == "broken"]
    assert (finding.ok, finding.required, finding.found) == (False, True, "OSError: no such thing")


def test_doctor_names_a_dependency_out_of_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy<1", "no-such-distribution>=2", "rich", 'pytest>999; extra == "dev"']
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    findings = {finding.name: finding for finding in doctor.examine()}
    assert not findings["numpy"].ok
    assert findings["numpy"].found.endswith(", wanted <1")
    assert findings["no-such-distribution"].found == "not installed"
    assert findings["no-such-distribution"].remedy == f"{sys.executable} -m pip install 'no-such-distribution>=2'"
    assert findings["rich"].ok
    assert "pytest" not in findings


def test_one_line_is_read_without_importing(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text('"""What it is.\n\nAnd more."""\nraise RuntimeError("imported")\n')
    assert inventory.first_line(file) == "What it is."


def test_a_file_that_is_no_python_is_listed_as_such(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("def (:\n")
    assert inventory.first_line(tmp_path / "broken.py").startswith("does not parse: invalid syntax")
