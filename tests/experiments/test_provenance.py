"""Where a result comes from: which edits make it stale, and which do not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from experiments import provenance


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small copy of the project's layout."""
    contents = {
        "kernels/scan/cpu.cpp": "// code",
        "kernels/scan/README.txt": "words",
        "archs/contract.py": "",
        "archs/generate.py": "from archs.contract import Tokens",
        "archs/blocks.py": "from archs import deep",
        "archs/deep.py": "",
        "archs/first.py": "import archs.blocks",
        "archs/second.py": "",
        "archs/verify.py": "",
        "experiments/report/document.py": "",
        "experiments/tasks/contract.py": "",
        "experiments/tasks/one.py": "from experiments.tasks.contract import Task",
        "experiments/tasks/two.py": "",
    }
    for name in (*contents, *(f"experiments/{name}.py" for name in provenance.TRAINING)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(contents.get(name, ""))
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("kernels/scan/cpu.cpp", True),
        ("kernels/scan/README.txt", False),
        ("archs/first.py", True),
        ("archs/blocks.py", True),
        ("archs/deep.py", True),
        ("archs/contract.py", True),
        ("archs/second.py", False),
        ("archs/verify.py", False),
        ("experiments/module.py", True),
        ("experiments/report/document.py", False),
        ("experiments/tasks/one.py", True),
        ("experiments/tasks/contract.py", True),
        ("experiments/tasks/two.py", False),
    ],
)
def test_only_what_computes_a_record_makes_it_stale(house: Path, file: str, stale: bool) -> None:
    before = provenance.sources("first", "one")
    with (house / file).open("a") as edited:
        edited.write("\n")
    assert (provenance.sources("first", "one") != before) == stale


def test_what_is_loaded_counts_as_it_was_and_the_rest_as_it_is(house: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit during a sweep reaches the files that each cell loads itself, and no others."""
    monkeypatch.setattr(provenance, "_loaded", {})
    loaded = ModuleType("experiments.loaded")
    loaded.__file__ = str(house / "experiments" / "module.py")
    monkeypatch.setitem(sys.modules, "experiments.loaded", loaded)
    provenance.remember()
    before = provenance.sources("first", "one")
    (house / "experiments" / "module.py").write_text("edited = True")
    assert provenance.sources("first", "one") == before
    (house / "archs" / "first.py").write_text("edited = True")
    assert provenance.sources("first", "one") != before


def test_a_users_own_file_counts_by_its_content(house: Path) -> None:
    own, same = house / "own.py", house / "elsewhere.py"
    own.write_text("x = 1")
    same.write_text("x = 1")
    assert provenance.sources(str(own), "one") == provenance.sources(str(same), "one")
    before = provenance.sources(str(own), "one")
    own.write_text("this is no Python (")
    assert provenance.sources(str(own), "one") != before


def test_a_missing_file_is_an_os_error(house: Path) -> None:
    with pytest.raises(OSError, match="absent"):
        provenance.sources(str(house / "absent.py"), "one")


def test_the_digest_covers_files_that_exist() -> None:
    names = {name for name, _ in provenance._files("gqa", "reverse")}
    assert {"arch", "task", "archs/contract.py", "archs/generate.py", "experiments/module.py"} <= names
    others = {"archs/verify.py", "archs/mamba.py", "experiments/report/document.py", "experiments/tasks/recall.py"}
    assert not others & names


def test_nothing_here_needs_torch() -> None:
    code = (
        "import sys; from experiments import provenance as p; p.environment(); p.sources('gqa', 'reverse');"
        "print([name for name in ('torch', 'lightning') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


def test_the_revision_is_that_of_our_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed copy inside somebody else's repository has none."""
    ours = tmp_path / "provenance.py"
    ours.write_text("")
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.setattr(provenance, "__file__", str(ours))
    revision = provenance.git.__wrapped__
    assert revision() is None
    git(tmp_path, "init")
    (tmp_path / "other").write_text("")
    git(tmp_path, "add", "other")
    git(tmp_path, "commit", "-m", "theirs")
    assert revision() is None
    git(tmp_path, "add", "provenance.py")
    git(tmp_path, "commit", "-m", "ours")
    clean = revision()
    assert clean is not None
    assert len(clean) == 40
    ours.write_text("edited")
    assert revision() == f"{clean}-dirty"
