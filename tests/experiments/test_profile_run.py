"""Points in processes of their own: how they end, what survives, and the whole command."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from made_ledger import make_runs, write_ledger
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_profile import point

from experiments import cli, report, tensorboard
from experiments.ledger import write_json
from experiments.profile import config, plan, run
from experiments.profile.config import Profile
from experiments.profile.point import Point

TINY: dict[str, Any] = {
    "archs": ["gqa"],
    "contexts": ["16"],
    "modes": ["prefill"],
    "decode_rows": [1],
    "device": "cpu",
    "seconds": 0.0,
    "budget": {"by": "none"},
    "arch": {"gqa": {"d_model": 16, "n_layers": 1}, "mamba": {"d_model": 16, "n_layers": 1}},
}
QUIET = Console(quiet=True)


def data(out: Path) -> dict[str, Any]:
    """What profile.json says."""
    return json.loads((out / "profile.json").read_text())


def stamps(out: Path) -> dict[Path, int]:
    """When each record was written."""
    return {path: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small profile that has run, and what was printed."""
    out = tmp_path_factory.mktemp("profile") / "p"
    given = {**TINY, "archs": ["gqa", "mamba"], "modes": ["train"], "predicted": ["64"]}
    profile = config.load(None, {**given, "trace": ["gqa", "train", "16"]})
    printed = io.StringIO()
    assert run.run(profile, out, console=Console(file=printed, width=120)) == 0
    return out, printed.getvalue()


def test_a_profile_measures_predicts_and_reports(profiled: tuple[Path, str]) -> None:
    out, printed = profiled
    assert "grows as L^" in printed
    assert "differ by at most 0.00%" in printed
    rows = data(out)["rows"]
    assert {(r["architecture"], r["context"]) for r in rows} == {("gqa", 16), ("gqa", 64), ("mamba", 16), ("mamba", 64)}
    assert all(r["status"] == ("predicted" if r["context"] == 64 else "done") for r in rows)
    assert all(r["tokens_per_second"] > 0 for r in rows if r["status"] == "done")
    assert len(list(csv.DictReader(io.StringIO((out / "profile.csv").read_text())))) == len(rows)
    assert {path.stem for path in (out / "figures").glob("*.png")} == {
        "context-memory",
        "context-speed",
        "context-split",
    }
    assert (out / "report.html").stat().st_size > 10_000


def test_the_curves_are_in_tensorboard(profiled: tuple[Path, str]) -> None:
    out, _ = profiled
    gqa = EventAccumulator(str(out / "tb" / "gqa")).Reload()
    assert [event.step for event in gqa.Scalars("train_x1/predicted_memory_MiB")] == [16, 64]
    assert [event.step for event in gqa.Scalars("train_x1/tokens_per_second")] == [16]
    overview = EventAccumulator(str(out / "tb" / "_experiment")).Reload()
    assert overview.Tags()["images"] == [f"report/context-{name}" for name in ("memory", "speed", "split")]


def test_a_trace_holds_the_operations_of_its_point(profiled: tuple[Path, str]) -> None:
    out, _ = profiled
    (path,) = (out / "traces").iterdir()
    assert path.name == "gqa-train-16.pt.trace.json.gz"
    assert path.relative_to(out).as_posix() in (out / "report.md").read_text()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    whole = {event["name"] for event in events if event["ph"] == "X" and event["dur"] >= 0}
    assert {"aten::linear", "archlab::rms_norm_cpu"} <= whole
    assert any(event["name"] == "[memory]" and "Total Allocated" in event["args"] for event in events)


def test_the_report_is_built_again_from_the_folder_alone(
    profiled: tuple[Path, str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, printed = profiled
    known = data(out)
    before = {name: (out / name).read_bytes() for name in ("profile.csv", "report.md")}
    for name in (*before, "profile.json"):
        (out / name).unlink()
    assert cli.main(["report", str(out)]) == 0
    assert data(out) == known
    assert {name: (out / name).read_bytes() for name in before} == before
    law = next(line for line in printed.splitlines() if "grows as L^" in line)
    assert law in capsys.readouterr().out


def test_the_report_of_a_comparison_shows_the_profile_below_it(profiled: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(profiled[0], tmp_path / "profile")
    page = report.write(write_ledger(tmp_path, make_runs("gqa", [0.5]))).read_text()
    assert "train: memory beyond the parameters" in page
    assert 'aria-label="context-memory"' in page
    tensorboard.write_overview(tmp_path)
    shown = EventAccumulator(str(tmp_path / "tb" / "_experiment")).Reload().Tags()["images"]
    assert {f"report/context-{name}" for name in ("memory", "speed", "split")} <= set(shown)


def test_what_is_recorded_is_not_run_again_but_what_failed_is_when_asked(profiled: tuple[Path, str]) -> None:
    out, _ = profiled
    profile = config.load(str(out / "experiment.yaml"), {})
    before = stamps(out)
    assert run.run(profile, out, console=QUIET) == 0
    assert stamps(out) == before
    chosen = _mark(profile, out, "failed")
    assert run.run(profile, out, console=QUIET) == 1
    assert json.loads(chosen.read_text())["reason"] == "made up"
    assert run.run(profile, out, retry=("failed",), console=QUIET) == 0
    assert json.loads(chosen.read_text())["status"] == "done"
    assert {path for path, stamp in stamps(out).items() if stamp != before[path]} == {chosen}


def _mark(profile: Profile, out: Path, status: str) -> Path:
    """Rewrite the record of the profile's first measured point, as if it had ended so."""
    chosen: Point = plan.measurements(profile, plan.items(profile))[0]
    path = out / "cells" / f"{chosen.key}.json"
    write_json(path, {**json.loads(path.read_text()), "status": status, "reason": "made up", "result": None})
    return path


def test_after_a_kill_the_same_command_keeps_what_was_finished(command: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    (tmp_path / "p.yaml").write_text(json.dumps({**TINY, "contexts": ["16", "32", "64"]}))
    words = [command, "profile", "--config", tmp_path / "p.yaml", "--out", out]
    with subprocess.Popen([str(word) for word in words], start_new_session=True, stdout=subprocess.DEVNULL) as running:
        until = time.monotonic() + 120
        while len(stamps(out)) < 2:
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        os.kill(running.pid, signal.SIGKILL)
    before = {path: stamp for path, stamp in stamps(out).items() if json.loads(path.read_text())}
    assert not (out / "profile.json").exists()
    assert run.run(config.load(str(tmp_path / "p.yaml"), {}), out, console=QUIET) == 0
    after = stamps(out)
    assert len(after) == 4
    assert {path: after[path] for path in before} == before
    assert [r["status"] for r in data(out)["rows"]] == ["done"] * 3


def test_a_memory_limit_is_real_and_the_frontier_lies_where_it_was_predicted(tmp_path: Path) -> None:
    out = tmp_path / "p"
    given = {**TINY, "contexts": ["64", "4k", "8k"], "memory_limit": "300MB", "frontier": True}
    wide = {"gqa": {"d_model": 64, "n_layers": 1, "d_ff": 2**14}}
    assert run.run(config.load(None, {**given, "arch": wide}), out, console=QUIET) == 0
    found = {r["context"]: r for r in data(out)["rows"]}
    assert found[64]["status"] == "done"
    assert found[4096]["status"] == "oom"
    assert "out of memory" in found[4096]["reason"]
    assert found[8192]["status"] == "not tried"
    assert found[4096]["needed_bytes"] > 300_000_000
    (frontier,) = data(out)["frontiers"]
    assert 64 < frontier["predicted"] < 4096
    assert len(frontier["measured"]) == 2
    assert frontier["measured"][str(frontier["predicted"])] == "done"
    there = found[frontier["predicted"]]
    assert there["predicted_bytes"] == pytest.approx(there["measured_bytes"], rel=0.05)
    assert 290_000_000 < there["predicted_bytes"] <= 300_000_000
    assert "; confirmed: " in (out / "report.md").read_text()


def test_a_point_that_takes_too_long_ends_as_timeout(tmp_path: Path) -> None:
    assert run.run(config.load(None, {**TINY, "contexts": ["1M"], "timeout": 0.3}), tmp_path / "p", console=QUIET) == 0
    (row,) = data(tmp_path / "p")["rows"]
    assert row["status"] == "timeout"
    assert "0.3 s" in row["reason"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "experiment.yaml").write_text("name: compare\n")
    assert cli.main(["profile", "--archs", "gqa", "--contexts", "16", "--out", str(tmp_path)]) == 2
    assert "holds no profile" in capsys.readouterr().err


def test_a_slow_backend_is_refused_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import kernels
    from experiments.errors import UserError
    from experiments.profile.measure import refuse_fallback

    monkeypatch.setattr(kernels, "fallbacks", lambda: {"selective_scan": "chunked"})
    with pytest.raises(UserError, match="--fallback chunked"):
        refuse_fallback(point())
    refuse_fallback(point(fallback=("chunked",)))
