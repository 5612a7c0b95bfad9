"""Points in processes of their own: how they end, what survives, and the whole command."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import Archlab
from rich.console import Console
from test_profile import point

from experiments.ledger import write_json
from experiments.profile import config, run
from experiments.profile.config import Profile
from experiments.profile.point import Point

TINY = {
    "archs": ["gqa", "mamba"],
    "contexts": ["16", "32"],
    "modes": ["train", "decode"],
    "decode_rows": [1],
    "device": "cpu",
    "seconds": 0.01,
    "budget": {"by": "parameters", "value": 5000},
}


def test_the_command_measures_predicts_and_reports(archlab: Archlab, tmp_path: Path) -> None:
    out = tmp_path / "p"
    words = (
        "profile --archs gqa,mamba --contexts 16,32 --predicted 64 --modes train,decode --decode_rows 1 --device cpu"
    )
    options = "--seconds 0.01 --budget.value 5000 --out"
    done = archlab(*words.split(), *options.split(), out)
    assert (done.returncode, done.stderr) == (0, "")
    assert "~ L^" in done.stdout
    assert "differ by at most 0.00%" in done.stdout
    data = json.loads((out / "profile.json").read_text())
    assert {(r["architecture"], r["mode"], r["context"]) for r in data["rows"]} == {
        (arch, mode, context) for arch in ("gqa", "mamba") for mode in ("train", "decode") for context in (16, 32, 64)
    }
    assert all(r["status"] == ("predicted" if r["context"] == 64 else "done") for r in data["rows"])
    assert len(list(csv.DictReader(io.StringIO((out / "profile.csv").read_text())))) == len(data["rows"])
    assert {path.stem for path in (out / "figures").glob("*.png")} == {"memory", "speed", "split"}
    assert (out / "report.html").stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    again = archlab(*words.split(), *options.split(), out)
    assert again.returncode == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")} == before


def test_a_memory_limit_is_real_and_longer_contexts_are_then_left_alone(tmp_path: Path) -> None:
    given = {**TINY, "archs": ["gqa"], "modes": ["prefill"], "contexts": ["64", "512k", "1M"], "memory_limit": "1500MB"}
    profile = config.load(None, {**given, "vocab_size": 4096, "budget": {"by": "none"}, "arch": {"gqa": {"d_ff": 512}}})
    assert run.run(profile, tmp_path / "p", console=Console(quiet=True)) == 0
    data = json.loads((tmp_path / "p" / "profile.json").read_text())
    found = {r["context"]: r for r in data["rows"]}
    assert found[64]["status"] == "done"
    assert found[2**19]["status"] == "oom"
    assert "out of memory" in found[2**19]["reason"]
    assert found[2**20]["status"] == "not tried"
    assert found[2**19]["predicted_bytes"] > 1_500_000_000


def test_a_point_that_takes_too_long_ends_as_timeout(tmp_path: Path) -> None:
    given = {**TINY, "archs": ["gqa"], "modes": ["prefill"], "contexts": ["1M"], "timeout": 0.3}
    assert run.run(config.load(None, given), tmp_path / "p", console=Console(quiet=True)) == 0
    (row,) = json.loads((tmp_path / "p" / "profile.json").read_text())["rows"]
    assert row["status"] == "timeout"
    assert "0.3 s" in row["reason"]


def test_what_is_recorded_is_not_run_again_but_what_failed_is_when_asked(tmp_path: Path) -> None:
    profile, out = config.load(None, {**TINY, "archs": ["gqa"], "modes": ["train"]}), tmp_path / "p"
    sweep = _recorded(profile, out, "failed")
    assert run.run(profile, out, console=Console(quiet=True)) == 1
    assert json.loads((out / "cells" / f"{sweep.key}.json").read_text())["reason"] == "made up"
    assert run.run(profile, out, retry=("failed",), console=Console(quiet=True)) == 0
    assert json.loads((out / "cells" / f"{sweep.key}.json").read_text())["status"] == "done"


def _recorded(profile: Profile, out: Path, status: str) -> Point:
    """Write a record of the profile's first measured point, as if it had ended so."""
    from experiments.profile import plan

    chosen = plan.measurements(profile, plan.items(profile))[0]
    (out / "cells").mkdir(parents=True)
    record = {"key": chosen.key, "kind": "measured", "status": status, "reason": "made up", "cell": chosen.to_json()}
    write_json(out / "cells" / f"{chosen.key}.json", {**record, "result": None, "log": "none"})
    return chosen


def test_a_folder_of_something_else_is_refused(archlab: Archlab, tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text("name: compare\n")
    done = archlab("profile", "--archs", "gqa", "--contexts", "16", "--out", tmp_path)
    assert done.returncode == 2
    assert "holds no profile" in done.stderr


def test_a_slow_backend_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import kernels
    from experiments.errors import UserError
    from experiments.profile.measure import refuse_fallback

    monkeypatch.setattr(kernels, "fallbacks", lambda: {"selective_scan": "chunked"})
    with pytest.raises(UserError, match="--fallback chunked"):
        refuse_fallback(point())
    refuse_fallback(point(fallback=("chunked",)))
